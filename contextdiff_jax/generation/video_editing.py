"""Edits of a clip by a folder of Stable Diffusion: one inversion, many prompts.

    FOLDER/manifest.json         what the edits are of: weights, clip, prompts, config, seed
    FOLDER/tuned/                the U-Net that was tuned on the clip, where it was: for --tuned
    FOLDER/source/               the clip as it was read: frames, clip.webp
    FOLDER/NN/frames/000.png     the edit of prompt NN, frame by frame
    FOLDER/NN/clip.webp          lossless; clip.mp4 where PyAV is, clip.gif where asked for
    FOLDER/NN/beside.webp        the source beside the edit; strip.png has all frames of both
    FOLDER/NN/heatmaps/          of chosen words, see word_heatmaps.py
    FOLDER/NN/edit.json          prompt, settings, coverage of the mask; written last

The same command goes on where it was stopped: edits that are there are left alone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.video_files import available, write_mp4
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.generation import clip_tuning
from contextdiff_jax.generation.editing_config import EditingConfig
from contextdiff_jax.generation.editor import Edited, Editor, with_weights
from contextdiff_jax.generation.prompt_edit import prompt_edit
from contextdiff_jax.generation.word_heatmaps import FOLDER as HEATMAPS
from contextdiff_jax.generation.word_heatmaps import check_heatmaps, write_heatmaps
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs import manifest
from contextdiff_jax.spaces.clips import beside, strip, write_frames, write_gif, write_webp
from contextdiff_jax.spaces.pictures import write_png
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import phase

EDIT_FILE = "edit.json"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A clip, the prompt that it shows, and those that it is to show.

    control: a clip of as many frames that the edits follow, or None.
    """

    clip: Clip
    source: str
    prompts: tuple[str, ...]
    control: Clip | None = None

    def check(self) -> None:
        """Raises ValueError for a prompt that is empty; warns of one that changes nothing."""
        if not self.source.strip():
            raise ValueError("--source_prompt is empty: must say what the clip shows")
        for prompt in self.prompts:
            if not prompt.strip():
                raise ValueError("--prompt is empty: must say what the clip is to show")
            if prompt.split() == self.source.split():
                logging.warning("--prompt=%s: is the source's prompt, nothing is edited", prompt)


def check_prompts(model: str, config: EditingConfig, wanted: Wanted) -> None:
    """Reads a folder's tokenizer alone, and raises ValueError for prompts that cannot be meant."""
    wanted.check()
    if config.fusion is None and not config.heatmaps:
        return
    tokenizer = load_tokenizer(local_folder(model) / "tokenizer")
    check_heatmaps(tokenizer, config.heatmaps, wanted.prompts)
    if config.fusion is None:
        return
    for prompt in wanted.prompts:
        prompt_edit(tokenizer, wanted.source, prompt, config.fusion, config.num_steps)


def edit_clip(
    editor: Editor, wanted: Wanted, folder: epath.PathLike, seed: int, watch: Watch
) -> list[epath.Path]:
    """Writes the edits of a clip that are not there yet, and returns the folders of all.

    wanted: checked by `check_prompts`. Raises ValueError where the folder holds edits of something
    else, naming the difference; NotFinite; Interrupted once the watch was triggered.
    """
    folder, config = epath.Path(folder), editor.config
    places = [folder / f"{number:02d}" for number in range(len(wanted.prompts))]
    manifest.begin(folder, _manifest(editor, wanted, seed), "edits", _subfolders(places, config))
    missing = [place for place in places if not (place / EDIT_FILE).exists()]
    if not missing:
        return places
    editor = tuned_on(editor, wanted, folder / clip_tuning.FOLDER, seed, watch)
    if distributed.is_main():
        write_frames(folder / "source" / "frames", wanted.clip.frames)
        write_webp(folder / "source" / "clip.webp", wanted.clip.frames, wanted.clip.fps)
    with phase(f"inverting {config.clip.count} frames in {config.num_steps} steps"):
        inverted = editor.invert(wanted.clip, wanted.source, seed)
    vote = Vote()
    for number, (place, prompt) in enumerate(zip(places, wanted.prompts, strict=True)):
        if place not in missing:
            continue
        if vote.stop(watch.triggered):
            raise Interrupted(number, "edit")
        with phase(f"edit {number + 1} of {len(places)}: {prompt}"):
            edited = editor.edit(inverted, wanted.source, prompt)
        _say_what_is_odd(edited.frames, edited.coverage, wanted.clip, config)
        if distributed.is_main():
            _write(place, edited, wanted, prompt, config)
    distributed.wait_for_all("edits")  # else JAX takes the one that writes for lost
    return places


def _subfolders(places: Sequence[epath.Path], config: EditingConfig) -> list[str]:
    """Returns the folders that are written to beside that of the tuned networks."""
    inside = ("", "/frames", f"/{HEATMAPS}") if config.heatmaps else ("", "/frames")
    names = [place.name + part for place in places for part in inside]
    return ["source", "source/frames", *names]


def tuned_on(editor: Editor, wanted: Wanted, folder: epath.Path, seed: int, watch: Watch) -> Editor:
    """Returns the editor for a clip, with weights tuned on it where the config asks for that.

    folder: for the weights; those that are there are taken.
    """
    editor = editor.for_clip(wanted.clip, wanted.control)
    config, stage = editor.config, editor.stage
    if not config.tuning.steps:
        return editor
    if (folder / "config.json").exists():  # written last
        return with_weights(editor, str(folder), seed)
    batch = stage.task.collate_requests([{"text": wanted.source}])
    tuning = clip_tuning.Tuning(
        editor.network, stage.params, stage.frozen, wanted.clip, batch, stage.mesh
    )
    with phase(f"tuning on the clip, {config.tuning.steps} steps"):
        params = clip_tuning.tune(tuning, folder, seed, watch)
    return editor.replaced(params=params)


def _say_what_is_odd(
    frames: np.ndarray, coverage: np.ndarray | None, clip: Clip, config: EditingConfig
) -> None:
    if np.array_equal(frames, clip.frames):
        logging.warning("the edit equals the source in every pixel: nothing was free to change")
    if coverage is None or config.fusion.threshold > 1:
        return
    shares = coverage.mean(axis=0)
    if shares.min() == 0 or shares.max() == 1:
        logging.warning(
            "the mask of fusion.blend_words is empty or full; of each frame it lets change: %s",
            ", ".join(f"{share:.2f}" for share in shares),
        )


def _write(
    place: epath.Path, edited: Edited, wanted: Wanted, prompt: str, config: EditingConfig
) -> None:
    source, fps = wanted.clip.frames, wanted.clip.fps
    frames, coverage = edited.frames, edited.coverage
    write_frames(place / "frames", frames)
    write_webp(place / "clip.webp", frames, fps)
    write_webp(place / "beside.webp", beside(source, frames), fps)
    write_png(place / "strip.png", strip(source, frames))
    if available():
        with written_whole(place / "clip.mp4") as unfinished:
            write_mp4(unfinished, frames, fps)
    if config.gif:
        write_gif(place / "clip.gif", frames, fps)
    heatmaps = write_heatmaps(place, frames, edited.words, edited.heat, fps)
    record = {
        "prompt": prompt,
        "source_prompt": wanted.source,
        "clip": wanted.clip.name,
        "fps": fps,
        "native": list(wanted.clip.native),
        "free_of_each_frame": None if coverage is None else coverage.mean(axis=0).tolist(),
        "heatmaps": heatmaps,
        "config": dataclasses.asdict(config),
    }
    with written_whole(place / EDIT_FILE) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1))


def _manifest(editor: Editor, wanted: Wanted, seed: int) -> dict[str, Any]:
    clip = wanted.clip
    adapter, control = editor.network.adapter, wanted.control
    described = {
        "weights": editor.stage.identity(),
        "image_encoder": None if adapter is None else adapter.image.identity,
        "sampler": dataclasses.asdict(editor.stage.sampler),
        "config": dataclasses.asdict(editor.config),
        "clip": {"sha256": _digest(clip.frames), "fps": clip.fps},
        "control": None if control is None else _digest(control.frames),
        "source_prompt": wanted.source,
        "prompts": list(wanted.prompts),
        "seed": seed,
    }
    return json.loads(json.dumps(described))


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()[:16]

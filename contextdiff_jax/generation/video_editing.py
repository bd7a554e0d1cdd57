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
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import linen as nn

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.video_files import available, write_mp4
from contextdiff_jax.encoders.frozen import load_image_encoder
from contextdiff_jax.encoders.latent_weights import abstract_unet
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.encoders.video_weights import fresh_parts, load_video_unet
from contextdiff_jax.generation import clip_tuning, manifest, stable_diffusion
from contextdiff_jax.generation.adapter_file import load_adapter
from contextdiff_jax.generation.cascade import Placed, Stage
from contextdiff_jax.generation.clip_programs import ClipNetwork
from contextdiff_jax.generation.editing_config import EditingConfig
from contextdiff_jax.generation.prompt_edit import PromptEdit, prompt_edit
from contextdiff_jax.generation.word_heatmaps import (
    check_heatmaps,
    marked_words,
    write_heatmaps,
)
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding
from contextdiff_jax.spaces.clips import beside, strip, write_frames, write_gif, write_webp
from contextdiff_jax.spaces.pictures import to_uint8, write_png
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import phase
from contextdiff_jax.tasks.clip_adapter import COLOURS, ClipAdapter
from contextdiff_jax.training.failure import NotFinite

EDIT_FILE = "edit.json"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A clip, the prompt that it shows, and those that it is to show."""

    clip: Clip
    source: str
    prompts: tuple[str, ...]

    def check(self) -> None:
        """Raises ValueError for a prompt that is empty; warns of one that changes nothing."""
        if not self.source.strip():
            raise ValueError("--source_prompt is empty: must say what the clip shows")
        for prompt in self.prompts:
            if not prompt.strip():
                raise ValueError("--prompt is empty: must say what the clip is to show")
            if prompt.split() == self.source.split():
                logging.warning("--prompt=%s: is the source's prompt, nothing is edited", prompt)


class Editor:
    """A U-Net of clips on the devices, and its programs.

    stage: of the folder, `params` those of the inflated U-Net and of the adapter, which `frozen`
    has CLIP's for.
    """

    def __init__(self, stage: Stage, config: EditingConfig, adapter: ClipAdapter | None = None):
        self.stage, self.config = stage, config
        times = stage.sampler.timesteps(stage.task.schedule)
        self.network = ClipNetwork(stage.task, config, times, adapter)
        _ = self.network.kept  # refuses a resolution that attention does not have
        self._invert = jit_on_mesh(self.network.invert, stage.mesh)
        self._edit = jit_on_mesh(self.network.edit, stage.mesh)
        self._colours = jit_on_mesh(self.network.colours, stage.mesh)
        self._coverage = jit_on_mesh(self.network.coverage, stage.mesh)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the prompts."""
        [text] = self.stage.task.conditions
        return text.text.tokenizer

    def changes(self, source: str, prompt: str) -> PromptEdit | None:
        """Returns what fusion reads of two prompts; raises as prompt_edit does."""
        if self.config.fusion is None:
            return None
        return prompt_edit(
            self.tokenizer, source, prompt, self.config.fusion, self.config.num_steps
        )

    def for_clip(self, clip: Clip) -> "Editor":
        """Returns the editor with the colours of a clip, which its adapter reads."""
        if self.network.adapter is None:
            return self
        colours = self._colours(self.stage.frozen, self._placed(clip))
        return self.replaced(frozen=self.stage.frozen | {COLOURS: colours})

    def replaced(self, **of_stage: Any) -> "Editor":
        """Returns the editor with other parts of its stage."""
        stage = dataclasses.replace(self.stage, **of_stage)
        return Editor(stage, self.config, self.network.adapter)

    def _placed(self, clip: Clip) -> jax.Array:
        return distributed.place(clip.frames, batch_sharding(self.stage.mesh))

    def invert(self, clip: Clip, source: str, seed: int) -> tuple[jax.Array, Any]:
        """Returns the path and the maps of a clip; raises NotFinite where a number is none."""
        frames = self._placed(clip)
        told = source if self.config.invert_prompt == "source" else ""
        batches = self._batch(source), self._batch(told)
        path, maps = self._invert(*self._weights(), frames, batches, jax.random.key(seed))
        finite = np.isfinite(distributed.to_host(path)).all(axis=tuple(range(2, path.ndim)))
        if not finite.all():
            step, frame = np.argwhere(~finite[::-1])[0]
            t = int(self.network.times[::-1][step])
            raise NotFinite(
                f"inversion of {clip.name}: step {step}, t = {t}, frame {frame} is not finite (NaN "
                "or infinite); nothing was written"
            )
        return path, maps

    def edit(self, inverted: tuple[jax.Array, Any], source: str, prompt: str) -> "Edited":
        """Returns the edit of an inverted clip; raises NotFinite where a number is none."""
        path, maps = inverted
        changes = self.changes(source, prompt)
        arrays = None if changes is None else dataclasses.asdict(changes)
        batches = self._batch(source), self._batch(prompt)
        words, marks = marked_words(self.tokenizer, self.config.heatmaps, prompt)
        given = (batches, path, maps, arrays, marks if words else None)
        drawn, latents, heat = self._edit(*self._weights(), *given)
        finite = np.isfinite(distributed.to_host(latents)).all(axis=(1, 2, 3))
        if not finite.all():
            raise NotFinite(
                f"edit {prompt!r}: frame {int(np.argmin(finite))} is not finite (NaN or infinite); "
                "nothing was written"
            )
        coverage = None
        if self.config.reads_masks:
            coverage = distributed.to_host(self._coverage(maps, changes.source_words))
        heat = {kind: distributed.to_host(each) for kind, each in heat.items()}
        return Edited(to_uint8(distributed.to_host(drawn)), coverage, words, heat)

    def _weights(self) -> tuple[Any, Any]:
        return self.stage.params, self.stage.frozen

    def _batch(self, prompt: str) -> dict[str, np.ndarray]:
        return self.stage.task.collate_requests([{"text": prompt}], warn=True)


@dataclasses.dataclass(frozen=True)
class Edited:
    """An edit. frames: uint8 (F, H, W, 3). coverage: what the mask leaves free, (n, F), or None.

    heat: attention to `words`, (F, m, n, W) each, see word_heatmaps.py.
    """

    frames: np.ndarray
    coverage: np.ndarray | None = None
    words: tuple[str, ...] = ()
    heat: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


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


def open_editor(
    model: str,
    config: EditingConfig,
    tuned: str | None = None,
    seed: int = 0,
    image_encoder: str | None = None,
) -> Editor:
    """Returns the editor of a folder of Stable Diffusion.

    tuned: a U-Net's folder that was tuned on a clip, in the place of the folder's own; it is not
    tuned again. seed: of temporal parts that begin anew. image_encoder: CLIP's folder, for an
    adapter.

    Raises as stable_diffusion.load does, and ValueError where the devices do not divide the frames
    or the tuned U-Net is of other sizes.
    """
    _check_adapter(config, image_encoder)
    if tuned is not None:
        config = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, steps=0))
    elif config.adapter is not None and not config.tuning.steps:
        logging.warning("config.adapter is zero and changes nothing: config.tuning.steps = 0")
    settings = stable_diffusion.Settings(
        height=config.height or None,
        width=config.width or None,
        negative=config.negative,
        sampler=(
            "name=ddim",
            f"num_steps={config.num_steps}",
            f"guidance_scale={config.guidance_scale}",
        ),
        dtype=config.dtype,
    )
    [stage] = stable_diffusion.load(model, settings).stages
    count, devices = config.clip.count, stage.mesh.devices.size
    if count % devices:
        raise ValueError(
            f"config.clip.count = {count}: must be a multiple of {devices}, the number of devices, "
            "which share the frames"
        )
    adapter, placed = None, Placed(MeshConfig(), stage.mesh)
    if config.adapter is not None:
        adapter = _adapter(stage, config, image_encoder)
        image = placed.add("image encoder", adapter.image.params, adapter.image.boxed)
        stage = dataclasses.replace(stage, frozen=stage.frozen | {adapter.image.identity: image})
    return _with_weights(Editor(stage, config, adapter), tuned, seed)


def _check_adapter(config: EditingConfig, folder: str | None) -> None:
    if config.adapter is None and folder is not None:
        raise ValueError(f"--image_encoder={folder}: only together with config.adapter")
    if config.adapter is not None and folder is None:
        raise ValueError("--image_encoder is missing: config.adapter needs a CLIP folder")


def _adapter(stage: Stage, config: EditingConfig, folder: str) -> ClipAdapter:
    """Returns the adapter for the sizes of the weights."""
    dtype, unet = stage.task.denoiser.dtype, stage.task.denoiser.config
    image = load_image_encoder(folder, dtype)
    sizes = dataclasses.replace(
        config.adapter,
        image_channels=unet.image_channels,
        image_dim=image.width,
        text_dim=unet.context_dim,
    )
    for side in stage.task.space.shape[:2]:
        sizes.check_resolution(side, "a side of the latents for config.adapter.patch_size")
    return ClipAdapter(Adapter(sizes, dtype, config.clip.count), image)


def _with_weights(editor: Editor, tuned: str | None, seed: int) -> Editor:
    """Returns the editor with the weights of the inflated U-Net, and of the adapter."""
    stage, config, adapter = editor.stage, editor.config, editor.network.adapter
    params = {"denoiser": stage.params["denoiser"]}
    if tuned is not None or config.video is not None and config.video.has_parameters:
        params["denoiser"] = _inflated(stage, config, tuned, seed)
    if adapter is not None:
        init = functools.partial(adapter.init, shape=stage.task.space.shape)
        boxed = jax.eval_shape(init, jax.random.key(0))
        if tuned is None:
            weights = nn.unbox(jit_on_mesh(init, stage.mesh, runs_once=True)(jax.random.key(seed)))
        else:
            weights = load_adapter(tuned, boxed)
        placed = Placed(MeshConfig(), stage.mesh)
        params["adapter"] = placed.add("adapter", weights, lambda: boxed)
    return editor.replaced(params=params)


def _inflated(stage: Stage, config: EditingConfig, tuned: str | None, seed: int) -> Any:
    """Returns the parameters of the inflated U-Net on the devices."""
    sizes, video = stage.task.denoiser.config, config.inflation
    if tuned is None:
        host = jax.tree.map(distributed.to_host, stage.params["denoiser"])
        weights = fresh_parts(host, sizes, video, seed)
    else:
        if video is None:
            raise ValueError(f"--tuned={tuned}: not with config.video = None, which has no clip")
        found, weights = load_video_unet(tuned, video, seed)
        if found != sizes:
            raise ValueError(f"--tuned={tuned}: its config.json is of another U-Net than --model's")
    placed = Placed(MeshConfig(), stage.mesh)
    return placed.add("U-Net of clips", weights, lambda: abstract_unet(sizes, video))


def edit_clip(
    editor: Editor, wanted: Wanted, folder: epath.PathLike, seed: int, watch: Watch
) -> list[epath.Path]:
    """Writes the edits of a clip that are not there yet, and returns the folders of all.

    wanted: checked by `check_prompts`. Raises ValueError where the folder holds edits of something
    else, naming the difference; NotFinite; Interrupted once the watch was triggered.
    """
    folder, config = epath.Path(folder), editor.config
    places = [folder / f"{number:02d}" for number in range(len(wanted.prompts))]
    manifest.begin(folder, _manifest(editor, wanted, seed), "edits")
    missing = [place for place in places if not (place / EDIT_FILE).exists()]
    if not missing:
        return places
    editor = editor.for_clip(wanted.clip)
    editor = _tuned(editor, wanted, folder / clip_tuning.FOLDER, seed, watch)
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


def _tuned(editor: Editor, wanted: Wanted, folder: epath.Path, seed: int, watch: Watch) -> Editor:
    """Returns the editor with the weights tuned on the clip, where the config asks for that."""
    config, stage = editor.config, editor.stage
    if not config.tuning.steps:
        return editor
    if (folder / "config.json").exists():  # written last
        return _with_weights(editor, str(folder), seed)
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
        logging.warning("the edit is the source, to the pixel: nothing was free to change")
    if coverage is None or config.fusion.threshold > 1:
        return
    shares = coverage.mean(axis=0)
    if shares.min() == 0 or shares.max() == 1:
        logging.warning(
            "the mask of fusion.blend_words is empty or full; it leaves free of each frame: %s",
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
    adapter = editor.network.adapter
    described = {
        "weights": editor.stage.identity(),
        "image_encoder": None if adapter is None else adapter.image.identity,
        "sampler": dataclasses.asdict(editor.stage.sampler),
        "config": dataclasses.asdict(editor.config),
        "clip": {"sha256": _digest(clip.frames), "fps": clip.fps},
        "source_prompt": wanted.source,
        "prompts": list(wanted.prompts),
        "seed": seed,
    }
    return json.loads(json.dumps(described))


def _digest(frames: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(frames)).hexdigest()[:16]

"""Clips of a camera through all that an edit does, without Stable Diffusion's weights.

  python -m benchmarks.real_clips --clips=clips --first_stage=taef2 --output=runs/real

CLIPS/clips.jsonl names the clips: {"clip": FOLDER of frames below CLIPS, "prompt": what it shows}.
A CLIP and a small base in the latents of a real first stage learn all frames with their prompts.
Then each method tunes on each clip, and draws it again from its inversion, with its own prompt: so
what is right is known, and nothing is said of how well an edit follows another prompt. Columns:

  tuning error       mean squared error of the prediction on the clip, before -> after tuning
  round trip         PSNR in dB of the redrawn frames, without guidance
  guided             likewise with guidance 3, as an edit is drawn; of fatezero it takes attention
                     over, an edit to the same words
  flicker            RMS in grey levels of changes between frames that the clip does not have, of
                     the guided frames

Round trip and guided are measured against what the first stage makes of the clip. The row `first
stage` is that against the clip itself. OUTPUT/ROW/CLIP.json is one clip, and CLIP.png its frames:
the clip, the first stage's, the round trip, the guided ones. What is there is not repeated.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from benchmarks.clip_base import BASE, CLIP, base_config, trained
from benchmarks.video_comparison import ADAPTER, METHODS, editor_on, measured_once
from contextdiff_jax.config import Config, with_task
from contextdiff_jax.data.clips import Clip, ClipConfig, read_clip
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.json_object import parse_object
from contextdiff_jax.data.latents import Latents
from contextdiff_jax.encoders.frozen import frozen_stage_sizes
from contextdiff_jax.entry import hide_libraries, keep_compiled_programs
from contextdiff_jax.evaluation.clips import flicker, masked_psnr
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.generation.clip_tuning import Tuning
from contextdiff_jax.generation.editing_config import EditingConfig, FusionConfig, TuningConfig
from contextdiff_jax.generation.editor import Editor
from contextdiff_jax.generation.video_editing import Wanted, tuned_on
from contextdiff_jax.runs.prepare import Job, prepare
from contextdiff_jax.runs.prepare_latents import LatentWorker
from contextdiff_jax.spaces.clips import strip
from contextdiff_jax.spaces.pictures import to_uint8, write_png
from contextdiff_jax.system.interruption import Watch

FIRST_STAGE = "first stage"
ROWS = ("per_frame", "tune_a_video", "tune_a_video_adapter", "fatezero", "fatezero_adapter")
COLUMNS = ("tuning error", "round trip", "guided", "flicker")
_KEYS = ("clip", "prompt")  # of a line of clips.jsonl
_SCALE = 3.0  # of guidance
_DRAWS = 32  # of time and noise, of which the tuning error is the mean


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_clips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--clips", type=pathlib.Path, required=True, help="folder with clips.jsonl")
    add("--first_stage", type=pathlib.Path, required=True, help="folder of TAEF2, say")
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--methods", type=lambda text: text.split(","), default=list(ROWS), help=", ".join(ROWS))
    add("--frames", type=int, default=8, help="of each clip")
    add("--stride", type=int, default=2, help="between frames")
    add("--side", type=int, default=128, help="of the frames in pixels; latents have an eighth")
    add("--base_steps", type=int, default=1500, help="of the base's training")
    add("--tuning_steps", type=int, default=200, help="on each clip")
    add("--num_steps", type=int, default=50, help="of inversion and drawing")
    args = parser.parse_args(argv)
    for method in args.methods:
        if method not in ROWS:
            raise ValueError(f"--methods = {method!r}: must be one of {', '.join(ROWS)}")
    if args.side not in (128, 256):
        raise ValueError(f"--side = {args.side}: must be 128 or 256")
    return args


def read_clips(args: argparse.Namespace) -> list[tuple[Clip, str]]:
    """Returns the clips and their prompts, named by the last part of their folders."""
    config = ClipConfig(count=args.frames, stride=args.stride)
    config.validate("clip")
    found: dict[str, tuple[Clip, str]] = {}
    path = args.clips / "clips.jsonl"
    for number, line in enumerate(path.read_text().splitlines(), 1):
        row = parse_object(line.encode())
        if row is None or not all(isinstance(row.get(key), str) for key in _KEYS):
            raise ValueError(f"{path}, line {number}: must have the texts {' and '.join(_KEYS)}")
        name = pathlib.PurePath(row["clip"]).name
        if name in found:
            raise ValueError(f"{path}, line {number}: a second clip {name!r}: must be one")
        clip = read_clip(str(args.clips / row["clip"]), config, args.side, args.side)
        found[name] = dataclasses.replace(clip, name=name), row["prompt"]
    return list(found.values())


def write_pictures(folder: epath.Path, clips: Sequence[tuple[Clip, str]]) -> None:
    """Writes every frame with its clip's prompt as an image folder for training."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for clip, prompt in clips:
        for number, frame in enumerate(clip.frames):
            name = f"{clip.name}_{number:03d}.png"
            write_png(folder / name, frame)
            rows.append({"file_name": name, "text": prompt})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def real_config(folder: epath.Path, args: argparse.Namespace) -> Config:
    """Returns the config of CLIP and base for the pictures in `folder`."""
    config = base_config(epath.Path(args.first_stage), 0, args.side // 8, args.base_steps)
    channels = frozen_stage_sizes(args.first_stage).latent_channels
    unet = dataclasses.replace(config.runs[BASE].task.latent_unet, image_channels=channels)
    runs = config.runs | {BASE: with_task(config.runs[BASE], latent_unet=unet)}
    runs = {
        name: dataclasses.replace(
            runs[name], data=DataConfig(source="folder", path=str(folder), resolution=side)
        )
        for name, side in ((CLIP, 16), (BASE, args.side))
    }
    return dataclasses.replace(config, name="real_clips", runs=runs)


def with_stored_latents(config: Config, folder: epath.Path) -> Config:
    """Returns the config whose base reads latents from `folder`, normalized by their statistics."""
    prepare(Job(config, BASE, "", str(folder), batch_size=8, dtype="float32"), worker=LatentWorker)
    found, run = Latents(str(folder)).metadata, config.runs[BASE]
    stage = dataclasses.replace(run.task.first_stage, mean=found.mean, std=found.std)
    data = dataclasses.replace(run.data, latents=str(folder))
    run = dataclasses.replace(with_task(run, first_stage=stage), data=data)
    return dataclasses.replace(config, runs=config.runs | {BASE: run})


def editing_config(method: str, guidance_scale: float, args: argparse.Namespace) -> EditingConfig:
    """Returns how a method draws a clip again."""
    chosen, tuning = METHODS[method], TuningConfig()
    if chosen.trainable:
        tuning = TuningConfig(args.tuning_steps, learning_rate=3e-4, trainable=chosen.trainable)
    return EditingConfig(
        method,
        clip=ClipConfig(count=args.frames, stride=args.stride),
        video=chosen.video,
        tuning=tuning,
        num_steps=args.num_steps,
        guidance_scale=guidance_scale,
        fusion=FusionConfig(finest=1, mask_reduction=2) if chosen.fused else None,
        adapter=ADAPTER if "adapter" in chosen.trainable else None,
    )


def first_stage_pictures(stage: Stage, clips: Sequence[tuple[Clip, str]]) -> dict[str, np.ndarray]:
    """Returns what the first stage makes of each clip's frames, uint8 (F, H, W, 3), by name."""

    @jax.jit
    def again(frozen: Any, frames: jax.Array) -> jax.Array:
        space = stage.task.space_in(frozen)
        return space.decode(space.encode(frames))

    return {clip.name: to_uint8(np.asarray(again(stage.frozen, clip.frames))) for clip, _ in clips}


@dataclasses.dataclass(frozen=True)
class Bench:
    """The base, CLIP's folder, options. kept: what the first stage makes of each clip, by name."""

    stage: Stage
    encoder: epath.Path
    args: argparse.Namespace
    kept: Mapping[str, np.ndarray]

    def drawn(
        self, method: str, wanted: Wanted, folder: pathlib.Path
    ) -> tuple[dict[str, float], list[np.ndarray]]:
        """Returns the figures of a clip, and its frames drawn without and with guidance."""
        kept = self.kept[wanted.clip.name]
        everywhere = np.ones(kept.shape[:3], bool)
        plain, guided = (
            editor_on(self.stage, editing_config(method, scale, self.args), self.encoder, 0)
            for scale in (1.0, _SCALE)
        )
        with Watch() as watch:
            tuned = tuned_on(plain, wanted, epath.Path(folder / "tuned"), 0, watch)
        found: dict[str, float] = {}
        if plain.config.tuning.steps:
            sides = {"before": plain.for_clip(wanted.clip), "after": tuned}
            found |= {f"tuning error {k}": tuning_error(v, wanted) for k, v in sides.items()}
        guided = guided.replaced(params=tuned.stage.params, frozen=tuned.stage.frozen)
        inverted = tuned.invert(wanted.clip, wanted.source, 0)  # without guidance for both
        frames = [
            editor.edit(inverted, wanted.source, wanted.source).frames for editor in (tuned, guided)
        ]
        for name, drawn in zip(("round trip", "guided"), frames, strict=True):
            found[name] = masked_psnr(drawn, kept, everywhere)
        return found | {"flicker": flicker(frames[-1], wanted.clip.frames, everywhere)}, frames


def tuning_error(editor: Editor, wanted: Wanted) -> float:
    """Returns the mean squared error of the prediction on a clip; the same draws each time."""
    stage = editor.stage
    batch = stage.task.collate_requests([{"text": wanted.source}])
    tuning = Tuning(editor.network, stage.params, stage.frozen, wanted.clip, batch, stage.mesh)
    task = tuning.task()
    error = jax.jit(lambda params, frozen, key: task.loss(params, frozen, {}, key)[0])
    keys = jax.random.split(jax.random.key(1), _DRAWS)
    return statistics.mean(float(error(stage.params, task.frozen, key)) for key in keys)


def measured(bench: Bench, row: str, clips: Sequence[tuple[Clip, str]]) -> list[dict[str, float]]:
    """Returns the figures of every clip of a row; those that are there are read."""
    folder, figures = bench.args.output / row, []
    folder.mkdir(parents=True, exist_ok=True)
    different = ("clips", "first_stage", "output", "methods")
    asked = {name: value for name, value in vars(bench.args).items() if name not in different}
    for clip, prompt in clips:

        def measure(clip: Clip = clip, prompt: str = prompt) -> dict[str, float]:
            kept, frames = bench.kept[clip.name], []
            if row == FIRST_STAGE:
                everywhere = np.ones(clip.frames.shape[:3], bool)
                found = {
                    "round trip": masked_psnr(kept, clip.frames, everywhere),
                    "flicker": flicker(kept, clip.frames, everywhere),
                }
            else:
                found, frames = bench.drawn(row, Wanted(clip, prompt, ()), folder / clip.name)
            write_png(epath.Path(folder / f"{clip.name}.png"), strip(clip.frames, kept, *frames))
            return found

        figures.append(measured_once(folder / f"{clip.name}.json", asked, measure))
    return figures


def summary(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Returns Markdown of {row: figures of each clip}: mean, least and largest of the clips."""
    lines = [["row", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    for row, clips in results.items():
        lines.append([row, *(_cell(clips, name) for name in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(clips: Sequence[Mapping[str, float]], name: str) -> str:
    if name == "tuning error":
        parts = [
            [clip[f"{name} {side}"] for clip in clips if f"{name} {side}" in clip]
            for side in ("before", "after")
        ]
        return " -> ".join(f"{statistics.mean(part):.3g}" for part in parts if part)
    values = [clip[name] for clip in clips if name in clip]
    if not values:
        return ""
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what is missing, writes and prints the summary; returns {row: figures}."""
    args = parse(argv)
    clips = read_clips(args)
    args.output.mkdir(parents=True, exist_ok=True)
    keep_compiled_programs(epath.Path(args.output) / "compiled")
    folder = epath.Path(args.output) / "base"
    write_pictures(folder / "pictures", clips)
    config = with_stored_latents(real_config(folder / "pictures", args), folder / "latents")
    stage, encoder = trained(config, folder)
    bench, results = Bench(stage, encoder, args, first_stage_pictures(stage, clips)), {}
    for row in (FIRST_STAGE, *args.methods):
        results[row] = measured(bench, row, clips)
        (args.output / "summary.md").write_text(summary(results))
    print(summary(results))
    return results


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

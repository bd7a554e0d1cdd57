"""Edits of rendered clips by every method, on a small base of its own: the table of docs/video.md.

  python -m benchmarks.video_comparison --output=runs/video --seeds=0,1,2
  python -m benchmarks.video_comparison --output=runs/small --seeds=0 --clips=2 --edits=colour \
      --base_steps=1000 --tuning_steps=50 --methods=per_frame,fatezero

For each seed a CLIP and an image model of rendered scenes are trained (clip_base.py), and for
ControlVideo a control branch that follows edges (clip_control.py); its control pictures are the
edges of the clip that is edited. Then every clip is edited by every method, from the same noise:
methods differ in nothing else. Each edit is measured against the exact one. Two rows are no
methods: `source` is the clip left as it is, `target` the exact edit. Several --tuning_steps measure
each method that tunes after each number of them, every time from the beginning.

OUTPUT/SEED/ROW/CLIP.json is one clip, and CLIP_EDIT.png its source, edit and exact edit; what is
there is not repeated, and a training that was stopped goes on. ROW is a method, with the number of
its tuning steps where it has some. OUTPUT/summary.md has mean and standard deviation over the
seeds, of each seed's mean over clips and edits.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
from absl import logging
from etils import epath

from benchmarks.clip_base import sampler, trained_base
from benchmarks.clip_control import edges, trained_control
from contextdiff_jax.data.clips import Clip, ClipConfig
from contextdiff_jax.data.scenes_clips import Edit, MovingScene, make_clip
from contextdiff_jax.entry import hide_libraries, keep_compiled_programs
from contextdiff_jax.evaluation.clips import flicker, masked_psnr, outside, scene_scores, warp_error
from contextdiff_jax.evaluation.pick_score import ClipNetworks, load_clip_networks
from contextdiff_jax.evaluation.similarity import frame_consistency, text_alignment
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.generation.editing_config import EditingConfig, FusionConfig, TuningConfig
from contextdiff_jax.generation.editor import Beside, Editor, editor_of
from contextdiff_jax.generation.video_editing import Wanted, tuned_on
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig, control_video, tune_a_video
from contextdiff_jax.spaces.clips import strip
from contextdiff_jax.spaces.pictures import write_png
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.interruption import Watch

SOURCE, TARGET = "source", "target"
ADAPTER = AdapterConfig(patch_size=2, width=64, num_blocks=2, heads=4, mlp_ratio=2, time_width=64)
_FATEZERO = VideoConfig(keys_from=("mid",), temporal=None)


@dataclasses.dataclass(frozen=True)
class Method:
    """video: the inflation. trainable: what is tuned. fused: whether attention is taken over.

    controlled: whether a control branch follows the clip's edges.
    """

    video: VideoConfig | None = None
    trainable: tuple[str, ...] = ()
    fused: bool = False
    controlled: bool = False

    def with_adapter(self) -> "Method":
        """Returns the method with the adapter, which is tuned."""
        return dataclasses.replace(self, trainable=(*self.trainable, "adapter"))


_TUNE_A_VIDEO = Method(tune_a_video(), ("**/self/query", "**/cross/query", "**/temporal"))
_FUSED = Method(_FATEZERO, fused=True)
_CONTROL_VIDEO = Method(
    control_video(), ("**/self/out", "**/temporal", "**/temporal_out"), controlled=True
)
METHODS = {
    "per_frame": Method(),
    "tune_a_video": _TUNE_A_VIDEO,
    "tune_a_video_adapter": _TUNE_A_VIDEO.with_adapter(),
    "fatezero": _FUSED,
    "fatezero_adapter": _FUSED.with_adapter(),
    "controlvideo": _CONTROL_VIDEO,
    "controlvideo_adapter": _CONTROL_VIDEO.with_adapter(),
}
SECONDS = "tuning s", "edit s"  # of a processor
COLUMNS = ("text", "consistency", "colour", "shape", "all right", "centre px", "PSNR outside")
COLUMNS += ("flicker", "warp error", *SECONDS)
# Of a call, and its results are still these; the tuning steps are in the rows' names.
_MAY_DIFFER = ("output", "seeds", "methods", "clips", "tuning_steps")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. method: of METHODS, or a bound. steps: of tuning, 0 for none."""

    method: str
    steps: int = 0

    @property
    def name(self) -> str:
        """What the table and its folder are called by."""
        return f"{self.method}_{self.steps}" if self.steps else self.method


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Returns the rows that a call asks for, the bounds last."""
    found = []
    for method in args.methods:
        tuned = bool(METHODS[method].trainable)
        found += [Row(method, steps) for steps in (args.tuning_steps if tuned else [0])]
    return [*found, Row(SOURCE), Row(TARGET)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video_comparison",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--seeds", type=names, default=["0", "1", "2"], help="of base and noise, comma-separated")
    add("--methods", type=names, default=list(METHODS), help=f"of {', '.join(METHODS)}")
    add("--edits", type=names, default=["colour", "shape", "both"], help="colour, shape, both, ...")
    add("--clips", type=int, default=8, help="number of clips")
    add("--frames", type=int, default=8, help="of each clip")
    add("--side", type=int, choices=(16, 32), default=16, help="of the frames in pixels")
    add("--base_steps", type=int, default=4000, help="of the base's training")
    add("--control_steps", type=int, default=2000, help="of the control branch's training")
    add("--tuning_steps", type=numbers, default=[200], help="on each clip, comma-separated")
    add("--num_steps", type=int, default=50, help="of inversion and edit")
    args = parser.parse_args(argv)
    for flag, allowed in (("methods", METHODS), ("edits", get_args(Edit))):
        for name in getattr(args, flag):
            if name not in allowed:
                raise ValueError(f"--{flag} = {name!r}: must be one of {', '.join(allowed)}")
    for seed in args.seeds:
        if not seed.isdecimal():
            raise ValueError(f"--seeds = {seed!r}: must be whole numbers, comma-separated")
    least = {"clips": 1, "frames": 2, "base_steps": 1, "control_steps": 1, "tuning_steps": 1}
    for flag, value in least.items():
        given = getattr(args, flag)
        if np.min(given) < value:
            raise ValueError(f"--{flag} = {np.min(given)}: must be at least {value}")
    return args


def editing_config(row: Row, scene: MovingScene, args: argparse.Namespace) -> EditingConfig:
    """Returns how a method edits a clip; the words that may change are the moving shape's."""
    method = METHODS[row.method]
    fusion, tuning = None, TuningConfig()
    if method.fused:
        words = (scene.moving.colour, scene.moving.shape)
        fusion = FusionConfig(blend_words=words, finest=1, mask_reduction=2)
    if method.trainable:
        tuning = TuningConfig(row.steps, learning_rate=3e-4, trainable=method.trainable)
    return EditingConfig(
        row.method,
        clip=ClipConfig(count=args.frames),
        video=method.video,
        tuning=tuning,
        num_steps=args.num_steps,
        guidance_scale=3.0,
        invert_from=0.055,
        fusion=fusion,
        adapter=ADAPTER if "adapter" in method.trainable else None,
        control_scale=float(method.controlled),
    )


def editor_on(
    stage: Stage, config: EditingConfig, encoder: epath.Path, seed: int, control: str = ""
) -> Editor:
    """Returns the editor of a base. encoder: CLIP's folder. control: a branch's, "" for none."""
    chosen = sampler(config.num_steps, config.guidance_scale)
    beside = Beside(
        image_encoder="" if config.adapter is None else str(encoder), controlnet=control
    )
    return editor_of(dataclasses.replace(stage, sampler=chosen), config, beside, seed)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the clips of one seed share: the base, CLIP to score with, its folder, and options.

    control: folder of the control branch; None where no method asks for it.
    """

    seed: int
    stage: Stage
    clip: ClipNetworks
    encoder: epath.Path
    control: epath.Path | None
    args: argparse.Namespace

    def measure(
        self, frames: np.ndarray, scene: MovingScene, target: MovingScene
    ) -> dict[str, float]:
        """Returns the figures of edited frames."""
        side, source = self.args.side, scene.render(self.args.side)
        network = self.clip.frames
        embedded = network.extract(frames)[network.layer]
        [text] = self.clip.texts([target.caption])
        unmasked = outside(scene.mask(side), max(1, side // 32))
        seen = scene_scores(frames, target)
        found = {
            "text": text_alignment(embedded, text),
            "consistency": frame_consistency(embedded),
            "colour": seen.colour,
            "shape": seen.shape,
            "all right": float(seen.both == 1),
            "PSNR outside": masked_psnr(frames, source, unmasked),
            "flicker": flicker(frames, source, unmasked),
            "warp error": warp_error(frames, *target.flow(side)),
        }
        return found if seen.centre is None else found | {"centre px": seen.centre}

    def edit(self, row: Row, number: int, folder: pathlib.Path) -> dict[str, dict[str, float]]:
        """Edits a clip and writes pictures; returns {edit: figures}."""
        scene, args = make_clip("test", number, self.args.frames), self.args
        config = editing_config(row, scene, args)
        clip = Clip(scene.render(args.side), f"clip {number}", 8.0, (args.side, args.side))
        wanted = Wanted(clip, scene.caption, (), self._control(config, clip))
        editor, seconds = self._tuned(config, wanted, folder / f"{number:03d}")
        inverted, found = editor.invert(clip, scene.caption, self.seed), {}
        for edit in args.edits:
            target = scene.edited(edit)
            begun = time.process_time()
            frames = editor.edit(inverted, scene.caption, target.caption).frames
            spent = dict(zip(SECONDS, (seconds, time.process_time() - begun), strict=True))
            found[edit] = self.measure(frames, scene, target) | spent
            picture = strip(clip.frames, frames, target.render(args.side))
            write_png(epath.Path(folder / f"{number:03d}_{edit}.png"), _enlarged(picture))
        return found

    def _control(self, config: EditingConfig, clip: Clip) -> Clip | None:
        if not config.control_scale:
            return None
        return dataclasses.replace(clip, frames=np.asarray(edges(clip.frames)))

    def _tuned(
        self, config: EditingConfig, wanted: Wanted, folder: pathlib.Path
    ) -> tuple[Editor, float]:
        """Returns the editor tuned on a clip, and the processor's seconds that took."""
        shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped: its seconds too
        control = str(self.control) if config.control_scale else ""
        editor = editor_on(self.stage, config, self.encoder, self.seed, control)
        begun = time.process_time()
        with Watch() as watch:
            editor = tuned_on(editor, wanted, epath.Path(folder / "tuned"), self.seed, watch)
        return editor, time.process_time() - begun

    def bound(self, name: str, number: int) -> dict[str, dict[str, float]]:
        """Returns the figures of the clip itself, or of the exact edits."""
        scene, found = make_clip("test", number, self.args.frames), {}
        for edit in self.args.edits:
            target = scene.edited(edit)
            shown = scene if name == SOURCE else target
            found[edit] = self.measure(shown.render(self.args.side), scene, target)
        return found


def _enlarged(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(4, axis=0).repeat(4, axis=1)


def measured(bench: Bench, row: Row) -> list[dict[str, float]]:
    """Returns the figures of every clip and edit of a row; those that are there are read."""
    args = bench.args
    folder = args.output / str(bench.seed) / row.name
    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(args).items() if name not in _MAY_DIFFER}
    figures = []
    for number in range(args.clips):

        def measure(number: int = number) -> dict[str, dict[str, float]]:
            if row.method in METHODS:
                return bench.edit(row, number, folder)
            return bench.bound(row.method, number)

        figures += measured_once(folder / f"{number:03d}.json", asked, measure).values()
    return figures


def measured_once(path: pathlib.Path, asked: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """Returns the figures in a file, measured and written where it is not there yet.

    Raises ValueError where they are of other options than those asked for.
    """
    if not path.exists():
        found = measure()
        with written_whole(epath.Path(path)) as file:
            file.write_text(json.dumps({"asked": asked, "figures": found}, indent=1) + "\n")
        logging.info("%s: %s", path, found)
    kept = json.loads(path.read_text())
    if kept["asked"] != asked:
        raise ValueError(f"{path} is of another call: take another --output")
    return kept["figures"]


def summary(results: Mapping[str, Mapping[str, Sequence[dict[str, float]]]]) -> str:
    """Returns Markdown of {method: {seed: rows of figures}}: mean +- deviation over the seeds."""
    lines = [["method", "seeds", "edits", *COLUMNS], ["---"] * (len(COLUMNS) + 3)]
    for method, seeds in results.items():
        cells = [_spread(seeds, name) for name in COLUMNS]
        edits = sum(map(len, seeds.values()))
        lines.append([method, str(len(seeds)), str(edits), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _spread(seeds: Mapping[str, Sequence[dict[str, float]]], name: str) -> str:
    """Returns the mean over seeds of a figure's mean; "" where no edit has it.

    An infinite one has no deviation: the PSNR of the bounds, which change nothing outside.
    """
    found = [[row[name] for row in rows if name in row] for rows in seeds.values()]
    means = [statistics.mean(values) for values in found if values]
    if not means:
        return ""
    mean = statistics.mean(means)
    spread = len(means) > 1 and math.isfinite(mean)
    return f"{mean:.3g} ± {statistics.stdev(means):.2g}" if spread else f"{mean:.3g}"


def _bench(folder: epath.Path, seed: int, args: argparse.Namespace) -> Bench:
    """Returns what the clips of a seed share, trained in `folder` where it is not there yet."""
    stage, encoder = trained_base(folder, seed, args.side, args.base_steps)
    control = None
    if any(METHODS[method].controlled for method in args.methods):
        control = trained_control(folder, seed, args.side, (args.base_steps, args.control_steps))
    clip = load_clip_networks(encoder, args.frames)
    return Bench(seed, stage, clip, encoder, control, args)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what is missing, writes and prints the summary; returns {row: {seed: figures}}."""
    args = parse(argv)
    rows = rows_of(args)
    results: dict[str, dict[str, list[dict[str, float]]]] = {row.name: {} for row in rows}
    args.output.mkdir(parents=True, exist_ok=True)
    keep_compiled_programs(epath.Path(args.output) / "compiled")
    for seed in args.seeds:
        folder = epath.Path(args.output / seed / "base")
        bench = _bench(folder, int(seed), args)
        for row in rows:
            results[row.name][seed] = measured(bench, row)
            there = {name: seeds for name, seeds in results.items() if seeds}
            (args.output / "summary.md").write_text(summary(there))
    print(summary(results))
    return results


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

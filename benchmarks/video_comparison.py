"""Edits of rendered clips by every method, on a small base of its own: the table of docs/video.md.

  python -m benchmarks.video_comparison --output=runs/video --seeds=0,1,2
  python -m benchmarks.video_comparison --output=runs/small --seeds=0 --clips=2 --edits=colour \
      --base_steps=1000 --tuning_steps=50 --methods=per_frame,fatezero

For each seed a CLIP and an image model of rendered scenes are trained (clip_base.py). Then every
clip is edited by every method, from the same noise: methods differ in nothing else. Each edit is
measured against the exact one. Two rows are no methods: `source` is the clip left as it is,
`target` the exact edit.

OUTPUT/SEED/METHOD/CLIP.json is one clip, and CLIP_EDIT.png its source, edit and exact edit; what is
there is not repeated, and a training that was stopped goes on. OUTPUT/summary.md has mean and
standard deviation over the seeds, of each seed's mean over clips and edits.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from absl import logging
from etils import epath

from benchmarks.clip_base import sampler, trained_base
from contextdiff_jax.data.clips import Clip, ClipConfig
from contextdiff_jax.data.scenes_clips import Edit, MovingScene, make_clip
from contextdiff_jax.entry import hide_libraries, keep_compiled_programs
from contextdiff_jax.evaluation.clips import flicker, masked_psnr, outside, scene_scores
from contextdiff_jax.evaluation.pick_score import ClipNetworks, load_clip_networks
from contextdiff_jax.evaluation.similarity import frame_consistency, text_alignment
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.generation.editing_config import EditingConfig, FusionConfig, TuningConfig
from contextdiff_jax.generation.editor import Beside, Editor, editor_of
from contextdiff_jax.generation.video_editing import Wanted, tuned_on
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig, tune_a_video
from contextdiff_jax.spaces.clips import strip
from contextdiff_jax.spaces.pictures import write_png
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.interruption import Watch

SOURCE, TARGET = "source", "target"
_ADAPTER = AdapterConfig(patch_size=2, width=64, num_blocks=2, heads=4, mlp_ratio=2, time_width=64)
_FATEZERO = VideoConfig(keys_from=("mid",), temporal=None)
_TUNED = ("**/self/query", "**/cross/query", "**/temporal")
# The inflation, what is tuned, and whether attention is taken over.
METHODS: dict[str, tuple[VideoConfig | None, tuple[str, ...], bool]] = {
    "per_frame": (None, (), False),
    "tune_a_video": (tune_a_video(), _TUNED, False),
    "tune_a_video_adapter": (tune_a_video(), (*_TUNED, "adapter"), False),
    "fatezero": (_FATEZERO, (), True),
    "fatezero_adapter": (_FATEZERO, ("adapter",), True),
}
SECONDS = "tuning s", "edit s"  # of a processor
COLUMNS = ("text", "consistency", "colour", "shape", "all right", "centre px", "PSNR outside")
COLUMNS += ("flicker", *SECONDS)
_MAY_DIFFER = ("output", "seeds", "methods", "clips")  # of a call, and its results are still these


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

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
    add("--tuning_steps", type=int, default=200, help="on each clip")
    add("--num_steps", type=int, default=50, help="of inversion and edit")
    args = parser.parse_args(argv)
    for flag, allowed in (("methods", METHODS), ("edits", get_args(Edit))):
        for name in getattr(args, flag):
            if name not in allowed:
                raise ValueError(f"--{flag} = {name!r}: must be one of {', '.join(allowed)}")
    for seed in args.seeds:
        if not seed.isdecimal():
            raise ValueError(f"--seeds = {seed!r}: must be whole numbers, comma-separated")
    for flag, least in (("clips", 1), ("frames", 2), ("base_steps", 1), ("tuning_steps", 1)):
        if getattr(args, flag) < least:
            raise ValueError(f"--{flag} = {getattr(args, flag)}: must be at least {least}")
    return args


def editing_config(method: str, scene: MovingScene, args: argparse.Namespace) -> EditingConfig:
    """Returns how a method edits a clip; the words that may change are the moving shape's."""
    video, trainable, fused = METHODS[method]
    fusion, tuning = None, TuningConfig()
    if fused:
        words = (scene.moving.colour, scene.moving.shape)
        fusion = FusionConfig(blend_words=words, finest=1, mask_reduction=2)
    if trainable:
        tuning = TuningConfig(args.tuning_steps, learning_rate=3e-4, trainable=trainable)
    return EditingConfig(
        method,
        clip=ClipConfig(count=args.frames),
        video=video,
        tuning=tuning,
        num_steps=args.num_steps,
        guidance_scale=3.0,
        invert_from=0.055,
        fusion=fusion,
        adapter=_ADAPTER if "adapter" in trainable else None,
    )


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the clips of one seed share: the base, CLIP to score with, its folder, and options."""

    seed: int
    stage: Stage
    clip: ClipNetworks
    encoder: epath.Path
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
        }
        return found if seen.centre is None else found | {"centre px": seen.centre}

    def edit(self, method: str, number: int, folder: pathlib.Path) -> dict[str, dict[str, float]]:
        """Edits a clip and writes pictures; returns {edit: figures}."""
        scene, args = make_clip("test", number, self.args.frames), self.args
        config = editing_config(method, scene, args)
        clip = Clip(scene.render(args.side), f"clip {number}", 8.0, (args.side, args.side))
        wanted = Wanted(clip, scene.caption, ())
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

    def _tuned(
        self, config: EditingConfig, wanted: Wanted, folder: pathlib.Path
    ) -> tuple[Editor, float]:
        """Returns the editor tuned on a clip, and the processor's seconds that took."""
        shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped: its seconds too
        stage = dataclasses.replace(
            self.stage, sampler=sampler(config.num_steps, config.guidance_scale)
        )
        encoder = "" if config.adapter is None else str(self.encoder)
        editor = editor_of(stage, config, Beside(image_encoder=encoder), self.seed)
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


def measured(bench: Bench, method: str) -> list[dict[str, float]]:
    """Returns the figures of every clip and edit by a method; those that are there are read."""
    args = bench.args
    folder = args.output / str(bench.seed) / method
    folder.mkdir(parents=True, exist_ok=True)
    asked = {name: value for name, value in vars(args).items() if name not in _MAY_DIFFER}
    rows = []
    for number in range(args.clips):
        path = folder / f"{number:03d}.json"
        if not path.exists():
            bounds = method in (SOURCE, TARGET)
            found = bench.bound(method, number) if bounds else bench.edit(method, number, folder)
            with written_whole(epath.Path(path)) as file:
                file.write_text(json.dumps({"asked": asked, "figures": found}, indent=1) + "\n")
            logging.info("seed %d, %s, clip %d: %s", bench.seed, method, number, found)
        kept = json.loads(path.read_text())
        if kept["asked"] != asked:
            raise ValueError(f"{path} is of another call: take another --output")
        rows += kept["figures"].values()
    return rows


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


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what is missing, writes and prints the summary; returns {method: {seed: rows}}."""
    args = parse(argv)
    methods = (*args.methods, SOURCE, TARGET)
    results: dict[str, dict[str, list[dict[str, float]]]] = {method: {} for method in methods}
    args.output.mkdir(parents=True, exist_ok=True)
    keep_compiled_programs(epath.Path(args.output) / "compiled")
    for seed in args.seeds:
        folder = epath.Path(args.output / seed / "base")
        stage, encoder = trained_base(folder, int(seed), args.side, args.base_steps)
        clip = load_clip_networks(encoder, args.frames)
        bench = Bench(int(seed), stage, clip, encoder, args)
        for method in methods:
            results[method][seed] = measured(bench, method)
            there = {name: seeds for name, seeds in results.items() if seeds}
            (args.output / "summary.md").write_text(summary(there))
    print(summary(results))
    return results


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

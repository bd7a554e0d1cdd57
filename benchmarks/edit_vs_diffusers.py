"""Whole edits of a rendered clip against the same program written with torch modules of diffusers.

  python -m benchmarks.edit_vs_diffusers                   # about 5 minutes on one core
  python -m benchmarks.edit_vs_diffusers --side=32 --methods=per_frame --turns=3 --json=r.json

An edit is everything from uint8 frames and two prompts to uint8 frames: text encoder, first stage,
DDIM inversion under the source's prompt, and guided DDIM under the edit's, --num_steps each. Ours
is generation/editor.py: two compiled programs, a scan or two each. Theirs is torch_editor.py: loops
over DDIMInverseScheduler and DDIMScheduler under torch.inference_mode. Measured in turns in one
process, after a warm-up; compiling ours is apart. On a CPU, in float32. Seconds of the processor
tell more than those of the clock where other programs run.

Equal: the model, a folder that both read (clip_base.py's sizes, random weights), frames, prompts,
steps, guidance, cores. torch runs in the memory layout that a trial (not compiled) finds faster. A
method is timed only if the frames of both sides differ by at most 2 of 255 everywhere.

Methods:
  per_frame: every frame by itself, as diffusers' network draws it.
  mid_frame: self-attention to the keys of the frame in the middle, FateZero's attention, and every
    frame's norms its own; theirs by an attention processor.
  fatezero: with norms over all frames, and attention taken over from the source; ours alone,
    because diffusers has nothing like it.
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import transformers
from etils import epath

from benchmarks.against_diffusers import add_timing_flags, begin, conditions
from benchmarks.torch_editor import Asked, TorchEditor, write_model
from benchmarks.torch_unet import faster_layout
from benchmarks.turns import Side, compare, finish, seconds_of, take_turns
from benchmarks.video_comparison import METHODS as COMPARED
from benchmarks.video_comparison import Row, editing_config
from contextdiff_jax.data.clips import Clip
from contextdiff_jax.data.scenes_clips import MovingScene, make_clip
from contextdiff_jax.generation.editing_config import EditingConfig
from contextdiff_jax.generation.editor import open_editor

METHODS = ("per_frame", "mid_frame", "fatezero")
PEERS = METHODS[:2]  # that both sides have
MOST = 2  # grey levels between the frames of both sides
_TRIAL_STEPS = 3  # of the trial of layouts


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line. Raises ValueError for a value that is not allowed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edit_vs_diffusers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--methods", type=lambda text: text.split(","), default=METHODS, help=", ".join(METHODS))
    add("--side", type=int, choices=(16, 32), default=16, help="of the frames in pixels")
    add("--frames", type=int, default=8, help="of the clip")
    add("--num_steps", type=int, default=50, help="of inversion, and of drawing")
    add_timing_flags(parser)
    args = parser.parse_args(argv)
    for name in args.methods:
        if name not in METHODS:
            raise ValueError(f"--methods = {name!r}: must be one of {', '.join(METHODS)}")
    for flag, least in {"frames": 2, "num_steps": 1, "turns": 1}.items():
        if getattr(args, flag) < least:
            raise ValueError(f"--{flag} = {getattr(args, flag)}: must be at least {least}")
    return args


def config_of(method: str, scene: MovingScene, args: argparse.Namespace) -> EditingConfig:
    """Returns our config, without noise on the latents, which diffusers has not."""
    row = Row("fatezero" if method == "fatezero" else "per_frame")
    config = dataclasses.replace(editing_config(row, scene, args), invert_from=0.0)
    if method == "mid_frame":
        video = dataclasses.replace(COMPARED["fatezero"].video, norm="frame")
        config = dataclasses.replace(config, video=video)
    config.validate()
    return config


def our_edit(folder: epath.Path, config: EditingConfig, asked: Asked) -> Callable[[], np.ndarray]:
    """Returns a function that does the edit and returns its frames; its first call compiles."""
    editor = open_editor(str(folder), config)
    clip = Clip(asked.frames, "clip", 8.0, asked.frames.shape[1:3])

    def run() -> np.ndarray:
        inverted = editor.invert(clip, asked.source, 0)
        return editor.edit(inverted, asked.source, asked.target).frames

    return run


def check_agreement(method: str, ours: np.ndarray, theirs: np.ndarray) -> int:
    """Returns how far frames differ at most. Raises ValueError where it is more than rounding."""
    found = int(np.abs(ours.astype(int) - theirs).max())
    if found > MOST:
        raise ValueError(
            f"{method}: frames of ours and of diffusers' differ by {found} of 255: must be at most "
            f"{MOST}, else they are not the same edit and a ratio says nothing"
        )
    return found


@dataclasses.dataclass
class Timed:
    """A function that counts its calls' seconds of the processor, all threads together."""

    run: Callable[[], np.ndarray]
    spent: list[float] = dataclasses.field(default_factory=list)

    def __call__(self) -> np.ndarray:
        begun = time.process_time()
        result = self.run()
        self.spent.append(time.process_time() - begun)
        return result

    def seconds(self) -> float:
        """Returns the median over the calls but the first, which compiles or allocates."""
        return statistics.median(self.spent[1:])


def measure(
    method: str, edits: dict[str, Callable[[], np.ndarray]], args: argparse.Namespace
) -> dict[str, Any]:
    """Prints and returns the figures of a method; edits: "ours", and "diffusers" if it has it."""
    print(f"{method}:", flush=True)
    timed = {name: Timed(run) for name, run in edits.items()}
    first, result = seconds_of(timed["ours"]), {}
    if len(edits) > 1:
        result["difference"] = check_agreement(method, *(run() for run in timed.values()))
        print(f"  frames of both sides differ by at most {result['difference']} of 255")
    sides = [Side(name, run, args.frames) for name, run in timed.items()]
    rates = take_turns(sides, args.turns, args.seconds)
    if len(edits) > 1:
        result |= compare(rates, "ours", "diffusers")
    clock = {name: args.frames / statistics.median(found) for name, found in rates.items()}
    processor = {name: run.seconds() for name, run in timed.items()}
    compiling = {
        "clock": max(0.0, first - clock["ours"]),
        "processor": max(0.0, timed["ours"].spent[0] - processor["ours"]),
    }
    for name in timed:
        print(f"  an edit, {name}: {clock[name]:.2f} s, of the processor {processor[name]:.2f} s")
    cache = " or reading the cache" if jax.config.jax_compilation_cache_dir else ""
    taken = "{clock:.1f} s, of the processor {processor:.1f} s".format(**compiling)
    print(f"  compiling ours{cache}: {taken}", flush=True)
    times = {"edit_seconds": clock, "processor_seconds": processor, "compile_seconds": compiling}
    return result | times | {"rates": rates}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures; returns what --json writes. Raises ValueError where both sides do not agree."""
    args = parse(argv)
    scene = make_clip("test", 0, args.frames)
    configs = {method: config_of(method, scene, args) for method in args.methods}
    results = begin(args)
    if jax.default_backend() != "cpu":
        raise ValueError(f"jax runs on {jax.default_backend()}: must be cpu, set JAX_PLATFORMS=cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        results["parameters"] = write_model(folder, args.side)
        target = scene.edited("colour").caption
        scale = configs[args.methods[0]].guidance_scale  # one of all methods
        frames = scene.render(args.side)
        asked = Asked(frames, scene.caption, target, args.num_steps, scale)
        describe(asked, results["parameters"])
        results |= _measured(folder, asked, configs, args)
    return finish(results, args.json)


def describe(asked: Asked, parameters: int) -> None:
    """Prints what is edited, and where."""
    count, height, width, _ = asked.frames.shape
    print(
        f"{count} frames of {height}x{width}, {asked.num_steps} steps of inversion and of drawing, "
        f"guidance {asked.guidance_scale:g}, {asked.source!r} -> {asked.target!r}, U-Net of "
        f"{parameters:,} parameters, float32, {conditions()}; images/s are frames/s",
        flush=True,
    )


def _measured(
    folder: epath.Path, asked: Asked, configs: dict[str, EditingConfig], args: argparse.Namespace
) -> dict[str, Any]:
    """Returns the figures of every method, and torch's layout."""

    def trial(layout: str) -> Callable[[], np.ndarray]:
        editor = TorchEditor(folder, layout)
        short = dataclasses.replace(asked, num_steps=min(_TRIAL_STEPS, args.num_steps))
        return lambda: editor.edit(short)

    layout = faster_layout(trial)
    results: dict[str, Any] = {"layout": layout}
    for method, config in configs.items():
        edits = {"ours": our_edit(folder, config, asked)}
        if method in PEERS:
            middle = len(asked.frames) if method == "mid_frame" else None
            theirs = TorchEditor(folder, layout, args.torch_compile, middle)
            edits["diffusers"] = functools.partial(theirs.edit, asked)
        results[method] = measure(method, edits, args)
    return results


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    main()

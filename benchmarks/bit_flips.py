"""Flips single bits in checkpoints and exports, and counts how many are found before they are read.

  python -m benchmarks.bit_flips                   # 30 of each; seconds

A small run with two checkpoints and a small export are made in a temporary folder. Each time one
random bit of one random file (arrays, manifests, metadata, checksums) of the newest checkpoint, or
of the export, is flipped, and read as training and sampling would. Every other bit is one of all
bits, so that arrays get most; the rest choose the file first, so that small ones get theirs.

  found       passed over for the checkpoint before, or refused in a sentence that names it
  harmless    read, and what came back is the same to the bit
  wrong       read, and something came back otherwise
  escaped     ended in another exception than CheckpointError

Exits with 1 unless all are found.
"""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.export import export_pipeline, load_stage, read_export
from contextdiff_jax.training.checkpoints import CheckpointError, Checkpoints
from contextdiff_jax.training.state import TrainState

STEPS = (8, 12)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=30, help="of each: checkpoints and exports")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        workdir = pathlib.Path(name)
        make_run(workdir)
        checkpoints, export = workdir / "base/checkpoints", workdir / "export"
        parts = {
            "checkpoints": (checkpoints / str(STEPS[-1]), lambda: read_checkpoint(checkpoints)),
            "exports": (export, lambda: read_whole_export(export)),
        }
        missed = 0
        for part, (folder, read) in parts.items():
            outcomes = count(folder, read, args.flips, random.Random(args.seed))
            missed += args.flips - outcomes["found"]
            others = ", ".join(f"{n} {what}" for what, n in outcomes.items() if what != "found")
            print(f"{part}: {outcomes['found']}/{args.flips} found{others and f' ({others})'}")
    return 1 if missed else 0


def make_run(workdir: pathlib.Path) -> None:
    """Writes two checkpoints of a run "base", an encoder's folder, and the export."""
    config = from_config_dict(quickstart.get_config("test"))
    metadata = {
        "run": "base",
        "config": dataclasses.asdict(config),
        "encoders": {"text": "x"},
        "versions": {},
    }
    with contextlib.closing(Checkpoints(workdir / "base/checkpoints")) as checkpoints:
        for step in STEPS:
            checkpoints.save(_state(step), step, metadata)
        checkpoints.wait()
    encoder = workdir / "clip/encoder"
    encoder.mkdir(parents=True)
    (encoder / "model.safetensors").write_bytes(np.random.default_rng(0).bytes(2000))
    export_pipeline(config, workdir, workdir / "export")


def _state(step: int) -> TrainState:
    keys = jax.random.split(jax.random.key(step), 4)
    w, ema, first, second = ({"w": jax.random.normal(key, (96, 96))} for key in keys)
    return TrainState(jnp.int32(step), w, ema, {"m": first, "v": second}, jnp.int32(-1))


def read_checkpoint(folder: pathlib.Path) -> Any:
    """Returns the newest state; raises CheckpointError when another than the last step was read."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(0)
    )
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        restored = checkpoints.restore(abstract)
    for aside in folder.glob("*.damaged"):
        aside.rename(aside.with_suffix(""))
    if int(restored.state.step) == STEPS[0]:
        raise CheckpointError("passed over")
    return restored.state, restored.metadata


def read_whole_export(folder: pathlib.Path) -> Any:
    """Returns everything of the export that sampling reads."""
    content, locate = read_export(folder)
    encoder = locate(content.config.encoders.clip)
    weights = (pathlib.Path(encoder) / "model.safetensors").read_bytes()
    return content, {name: load_stage(folder, name) for name in content.stages}, weights


def count(
    folder: pathlib.Path, read: Callable[[], Any], flips: int, rng: random.Random
) -> collections.Counter:
    """Returns how often each outcome (see above) came of flipping one bit below `folder`."""
    expected = read()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    outcomes: collections.Counter = collections.Counter()
    for number in range(flips):
        (path,) = rng.choices(files, sizes if number % 2 else None)
        with _flipped(path, rng.randrange(8 * path.stat().st_size)):
            outcome = _outcome(read, expected)
        outcomes[outcome] += 1
        if outcome != "found":
            print(f"{outcome}: {path.relative_to(folder)}")
    return outcomes


@contextlib.contextmanager
def _flipped(path: pathlib.Path, bit: int) -> Iterator[None]:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        yield
    finally:
        path.write_bytes(whole)


def _outcome(read: Callable[[], Any], expected: Any) -> str:
    try:
        found = read()
    except CheckpointError:
        return "found"
    except Exception as error:  # what a user would see as a traceback
        print(f"{type(error).__name__}: {error}"[:300])
        return "escaped"
    same = jax.tree.structure(found) == jax.tree.structure(expected) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    return "harmless" if same else "wrong"


if __name__ == "__main__":
    sys.exit(main())

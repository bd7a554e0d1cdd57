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
import pathlib
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from contextdiff_jax.training.checkpoints import CheckpointError, Checkpoints
from tests.fixtures.tiny_export import STEPS, make_run, read_whole_export, state_of


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


def read_checkpoint(folder: pathlib.Path) -> Any:
    """Returns the newest state; raises CheckpointError when another than the last step was read."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0)
    )
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        restored = checkpoints.restore(abstract)
    for aside in folder.glob("*.damaged"):
        aside.rename(aside.with_suffix(""))
    if int(restored.state.step) == STEPS[0]:
        raise CheckpointError("passed over")
    return restored.state, restored.metadata


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

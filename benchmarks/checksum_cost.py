"""What comparing checksums adds to the restoring of a checkpoint, and recording them to a save.

  python -m benchmarks.checksum_cost --megabytes=1024 --repeats=5

A state of random float32 is saved to a temporary folder, then restored in turn with its checksums
compared and without, from the disk (its files dropped from the page cache before, which needs no
rights) and from memory. Of each the median in seconds, by the clock and of all processors' time
together; "added" is the median of the differences between neighbours. On a machine that has other
work to do, believe the processors' time.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from unittest import mock

import jax
import jax.numpy as jnp

from contextdiff_jax.training import checksums
from contextdiff_jax.training.checkpoints import Checkpoints
from contextdiff_jax.training.state import TrainState

_ARRAY = 4 << 20  # float32 numbers: 16 MiB


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024, help="of the state")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: the system's temporary one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name) / "checkpoints"
        state = random_state(args.megabytes)
        saved = save(folder, state)
        print(
            f"save: {saved:.2f} s, of which checksums {record_again(folder):.2f} s, in background"
        )
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        for where, cold in (("disk", True), ("memory", False)):
            pairs = [timed_pair(folder, abstract, cold, n) for n in range(args.repeats)]
            for unit, of in ((0, "by the clock"), (1, "of processors")):
                without = statistics.median(plain[unit] for plain, _ in pairs)
                added = statistics.median(with_[unit] - plain[unit] for plain, with_ in pairs)
                share = f"{added:.2f} s added ({added / without:.1%})"
                print(f"restore from {where}: {without:.2f} s {of}, {share}")


def random_state(megabytes: int) -> TrainState:
    """Returns a state of about that size, a quarter each of params, ema and two moments."""
    count = max(1, megabytes // 64)
    make = jax.jit(lambda key: jax.random.normal(key, (_ARRAY,)))
    groups = [
        {f"w{i}": make(jax.random.key(count * group + i)) for i in range(count)}
        for group in range(4)
    ]
    optimizer = {"first": groups[2], "second": groups[3]}
    return TrainState(jnp.int32(1), groups[0], groups[1], optimizer, jnp.int32(-1))


def save(folder: pathlib.Path, state: TrainState) -> float:
    """Saves the state as step 1; returns the seconds until it was on disk."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        started = time.perf_counter()
        checkpoints.save(state, 1, {"run": "base"})
        checkpoints.wait()
        return time.perf_counter() - started


def record_again(folder: pathlib.Path) -> float:
    """Returns the seconds that recording the checksums of step 1 takes."""
    started = time.perf_counter()
    checksums.record(folder / "1")
    return time.perf_counter() - started


def timed_pair(
    folder: pathlib.Path, abstract: TrainState, cold: bool, number: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns `timed` of a restore without and with comparing; which comes first alternates."""
    order = (False, True) if number % 2 else (True, False)
    seconds = {compared: timed(folder, abstract, cold, compared) for compared in order}
    return seconds[False], seconds[True]


def timed(
    folder: pathlib.Path, abstract: TrainState, cold: bool, compared: bool
) -> tuple[float, float]:
    """Returns the seconds of a restore as by a new process: by the clock, and of processors."""
    checksums.forget()
    if cold:
        drop_from_memory(folder)
    without = mock.patch.object(checksums, "damage", lambda *_, **__: None)
    comparing = contextlib.nullcontext() if compared else without
    with contextlib.closing(Checkpoints(folder)) as checkpoints, comparing:
        started = time.perf_counter(), time.process_time()
        jax.block_until_ready(checkpoints.restore(abstract).state)
        return time.perf_counter() - started[0], time.process_time() - started[1]


def drop_from_memory(folder: pathlib.Path) -> None:
    """Has the system forget what it holds of the files, where it can (Linux)."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()

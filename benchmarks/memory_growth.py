"""Does a training's memory grow? Resident memory and heap in use at every logged step.

  python -m benchmarks.memory_growth memory.csv --config=configs/laion.py:tiny \
      --config.data_path=PATH/TO/emoji_shards --workdir=runs/memory --run=base \
      --config.runs.base.steps=20000 --config.runs.base.save_every=250

The first argument is the CSV file to write (step, resident MB, heap in use MB, heap free MB), the
others are those of contextdiff_jax.main, which runs in this process. At the end, or given the
CSV file alone, the growth in each quarter of the steps is printed: by a line of least squares, so
that single saves do not count. What C's allocator holds is known with glibc from 2.33 on; resident
memory on Linux.
"""

import csv
import ctypes
import logging
import pathlib
import re
import runpy
import sys
from collections.abc import Sequence

import numpy as np
from absl import logging as absl_logging

FIELDS = ("step", "resident", "heap_in_use", "heap_free")
_QUARTERS = 4


class _Mallinfo2(ctypes.Structure):
    """glibc's struct of that name: ten size_t; three of them, in bytes, matter here."""

    _fields_ = [
        ("before", ctypes.c_size_t * 4),
        ("mapped", ctypes.c_size_t),
        ("between", ctypes.c_size_t * 2),
        ("in_use", ctypes.c_size_t),
        ("free", ctypes.c_size_t),
        ("after", ctypes.c_size_t),
    ]


def resident() -> float:
    """Returns this process's resident memory in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) / 1e3


def heap() -> tuple[float, float]:
    """Returns the MB of C's heap, all arenas together, that are in use and that are free."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return float("nan"), float("nan")
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return (info.in_use + info.mapped) / 1e6, info.free / 1e6


class Sampler(logging.Handler):
    """Adds a line to a CSV file whenever training logs a step."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self._path = path
        path.write_text(",".join(FIELDS) + "\n")

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"step (\d+):", record.getMessage())
        if found:
            figures = ",".join(f"{value:.1f}" for value in (resident(), *heap()))
            with self._path.open("a") as file:
                file.write(f"{found[1]},{figures}\n")


def growth(path: pathlib.Path) -> str:
    """Returns a table of the growth in each quarter of the steps, in MB per 1,000 steps."""
    with path.open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    lines = ["steps | resident MB at the end | growth per 1,000 steps | heap in use, growth"]
    for part in np.array_split(rows, _QUARTERS):
        slopes = [_slope(part, name) for name in ("resident", "heap_in_use")]
        first, last = part[0], part[-1]
        lines.append(
            f"{first['step']:.0f}-{last['step']:.0f} | {last['resident']:.0f} | "
            + " | ".join(f"{slope:+.2f}" for slope in slopes)
        )
    return "\n".join(lines)


def _slope(rows: Sequence[dict[str, float]], name: str) -> float:
    steps = [row["step"] / 1000 for row in rows]
    return float(np.polyfit(steps, [row[name] for row in rows], 1)[0])


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    if len(sys.argv) > 2:
        absl_logging.get_absl_logger().addHandler(Sampler(path))
        sys.argv = ["contextdiff_jax.main", *sys.argv[2:]]
        try:
            runpy.run_module("contextdiff_jax.main", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise
    print(growth(path))


if __name__ == "__main__":
    main()

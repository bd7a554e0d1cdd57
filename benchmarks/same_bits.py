"""Does another checkout of the project train and draw the same to the bit?

  python -m benchmarks.same_bits --other=../before --output=runs/bits
  python -m benchmarks.same_bits --other=../before --output=runs/bits --case=laion:tiny \
      --data=PATH/TO/SHARDS

Each case is trained in this checkout and in the other by the same command, one after the other.
Compared are every value of every run's metrics.csv but those of the clock, every array of every
run's newest checkpoint (parameters, EMA, optimiser), and every picture in samples/. For a change
of structure, which must not change numbers. Exit code 1 where anything differs, or is missing.

OUTPUT/CASE/here and OUTPUT/CASE/there are the workdirs; delete them to train again.
"""

import argparse
import csv
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from contextdiff_jax.training.checkpoints import load_tree, newest_metadata

CASES = {
    "quickstart": ("clip=8", "base=6", "sr=4"),
    "quickstart:test": (),
    "laion:tiny": (),
    "emoji:cpu": ("clip=8", "base=6", "sr=4"),
    "cifar10:cpu_folder": ("clip=8", "base=6"),
}
"""NAME:PRESET of configs/, and the steps of runs that would take hours."""
ROOT = pathlib.Path(__file__).resolve().parent.parent
_CLOCK = ("per_second", "seconds", "memory")  # in the names of metrics that no seed decides


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--other", type=pathlib.Path, required=True, help="the other checkout")
    add("--output", type=pathlib.Path, required=True, help="folder of the workdirs")
    add("--case", choices=CASES, action="append", help="one of the cases; all without --data")
    add("--data", default="", help="data_path of the case")
    args = parser.parse_args(argv)
    if not (args.other / "contextdiff_jax" / "main.py").exists():
        parser.error(f"--other={args.other}: no checkout of the project there")
    args.case = args.case or ["quickstart", "quickstart:test"]
    return args


def train(checkout: pathlib.Path, case: str, workdir: pathlib.Path, data: str) -> None:
    """Runs a case's command in a checkout, in a process of its own."""
    name, colon, preset = case.partition(":")
    config = f"configs/{name}.py{colon}{preset}"
    command = [sys.executable, "-m", "contextdiff_jax.main", f"--config={config}"]
    command.append(f"--workdir={workdir.resolve()}")
    if data:
        command.append(f"--config.data_path={pathlib.Path(data).resolve()}")
    for short in CASES[case]:
        run, _, steps = short.partition("=")
        values = {"steps": steps, "log_every": 1, "save_every": steps}
        command += [f"--config.runs.{run}.{key}={value}" for key, value in values.items()]
    subprocess.run(command, check=True, cwd=checkout)


def fingerprint(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns every compared value of a finished pipeline, by name."""
    found: dict[str, Any] = {}
    for table in sorted(workdir.glob("*/metrics.csv")):
        run = table.parent.name
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                found |= _of_row(run, row)
        step = newest_metadata(table.parent / "checkpoints")["step"]
        state = load_tree(table.parent / "checkpoints" / str(step) / "state")
        for path, leaf in jax.tree.leaves_with_path(state):
            found[f"{run} state{jax.tree_util.keystr(path)}"] = _digest(np.asarray(leaf).tobytes())
    for picture in sorted(workdir.glob("samples/*/*.png")):
        found[str(picture.relative_to(workdir))] = _digest(picture.read_bytes())
    return found


def _of_row(run: str, row: dict[str, str]) -> dict[str, str]:
    if any(word in row["name"] for word in _CLOCK):
        return {}
    return {f"{run} {row['name']} at {row['step']}": row["value"]}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def compare(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Returns the names that differ or that one side lacks."""
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, prints a line a case; returns the number of cases that differ."""
    args, different = parse(argv), 0
    for case in args.case:
        folder = args.output / case.replace(":", "_")
        found = []
        for side, checkout in (("here", ROOT), ("there", args.other)):
            train(checkout, case, folder / side, args.data)
            found.append(fingerprint(folder / side))
        names = compare(*found)
        different += bool(names)
        (folder / "different.json").write_text(json.dumps(names, indent=1) + "\n")
        print(f"{case}: {len(found[0])} values, {len(names)} different: {', '.join(names[:5])}")
    return different


if __name__ == "__main__":
    sys.exit(min(main(), 1))

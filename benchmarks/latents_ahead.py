"""Training on latents computed before, beside encoding the pictures in each step.

  python -m benchmarks.latents_ahead                     # configs/stable_diffusion.py:taef2
  python -m benchmarks.latents_ahead --config=classes:latent --batch_size=1

Real training steps of one run, in turns, in one process: gradient, optimizer and average of the
weights. Random weights, float32, all networks of the run trained. Stored latents are drawn anew
from their Gaussian, as encoded ones are. Reading files is in neither; `benchmarks.data_loader`
measures that of pictures.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks.adapter_overhead import training_run
from benchmarks.configuration import load_config
from benchmarks.stages import random_inputs, random_stage
from benchmarks.turns import Side, compare, finish, load, take_turns
from contextdiff_jax.runs.build import diffusion_runs


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latents_ahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", default="stable_diffusion:taef2", help="NAME[:PRESET] of configs/")
    add("--run", help="of the config; the first one that draws by default")
    add("--batch_size", type=int, help="the run's by default")
    add("--without_adapter", action="store_true", help="leave the adapter and its encoders out")
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=5.0, help="of a turn")
    add("--json", type=pathlib.Path, help="file for the results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures; returns what --json writes. ValueError for a run that is not in latents."""
    args = parse(argv)
    config = load_config(args.config)
    name = args.run or diffusion_runs(config)[0]
    if name not in config.runs or not config.runs[name].task.in_latents:
        latent = [each for each, run in config.runs.items() if run.task.in_latents]
        raise ValueError(f"run = {name!r}: must be one in latents, {', '.join(latent) or '(none)'}")
    batch_size = args.batch_size or config.runs[name].batch_size
    adapter = config.use_adapter and not args.without_adapter
    results: dict[str, Any] = {"jax": jax.__version__, "load_before": load()}
    encoding = random_stage(config, name, batch_size, adapter=adapter)
    stored = random_inputs(encoding.task.stored_shapes(batch_size))
    stages = {"stored": dataclasses.replace(encoding, batch=stored), "encoded": encoding}
    print(f"{args.config}, run {name}, batch {batch_size}:")
    sides = [
        Side(label, training_run(stage, config, name), batch_size)
        for label, stage in stages.items()
    ]
    rates = take_turns(sides, args.turns, args.seconds)
    results |= {"batch_size": batch_size, "rates": rates, **compare(rates, "stored", "encoded")}
    return finish(results, args.json)


if __name__ == "__main__":
    main()

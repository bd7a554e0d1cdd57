"""One base model trained with and without the adapter for a while: pictures and metrics of both.

  python -m benchmarks.adapter_vs_plain --data_path=PATH/TO/emoji_shards --output=results/emoji \
      --minutes=4                                                          # configs/emoji.py

The config's CLIP is trained once, for both. The base model with the adapter then trains for
--minutes after its first report, the one without for as many steps as that came to, at a
constant learning rate. Same seed, data, batches. OUTPUT gets, with NAME "with" and "without":
NAME/pictures (of the config's prompts, by its sampler), NAME/metrics.csv, NAME/overview.txt,
and summary.json. Super-resolution is left out. What differs in the losses says little: the adapter
changes what is predicted. Look at the pictures.
"""

import argparse
import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from benchmarks.adapter_overhead import load_config
from contextdiff_jax.config import Config, RunConfig, with_task
from contextdiff_jax.entry import hide_libraries
from contextdiff_jax.generation.samples import draw_samples
from contextdiff_jax.runs.build import diffusion_runs
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.system.interruption import Interrupted
from contextdiff_jax.training.checkpoints import newest_metadata

SIDES = {"with": True, "without": False}
_ENDLESS = 10**9  # steps; time ends the training
_LOOK_SECONDS = 0.2  # between looks at the clock


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapter_vs_plain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", default="emoji", help="NAME[:PRESET] of configs/")
    add("--data_path", default="", help="of every run")
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--minutes", type=float, default=4.0, help="of the base model with the adapter")
    add("--clip_steps", type=int, help="the config's by default")
    add("--batch_size", type=int, help="of the base model; the config's by default")
    return parser.parse_args(argv)


def shortened(config: Config, args: argparse.Namespace) -> tuple[Config, str, str]:
    """Returns the config for the two trainings, and the names of its CLIP and base runs."""
    base = diffusion_runs(config)[0]
    clip = next(name for name in config.pipeline if config.runs[name].task.encoder_config)
    runs = {name: config.runs[name] for name in (clip, base)}
    if args.clip_steps:
        runs[clip] = dataclasses.replace(runs[clip], steps=args.clip_steps)
    run = runs[base]
    run = dataclasses.replace(
        run,
        steps=_ENDLESS,
        batch_size=args.batch_size or run.batch_size,
        optimizer=dataclasses.replace(run.optimizer, decay="constant"),
        # Nothing but training in the measured time; the last step is saved anyway.
        save_every=_ENDLESS,
    )
    preview = dataclasses.replace(run.task.preview, every=0)
    runs[base] = with_task(run, diagnose_every=0, preview=preview)
    runs = {name: with_data(run, args.data_path) for name, run in runs.items()}
    return dataclasses.replace(config, pipeline=(clip, base), runs=runs), clip, base


def with_data(run: RunConfig, path: str) -> RunConfig:
    """Returns the run on other data; "" keeps its own."""
    if not path:
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, path=path))


@contextlib.contextmanager
def stopped_after(minutes: float, begun: Callable[[], bool]) -> Iterator[None]:
    """Sends this process SIGTERM, which ends a training, `minutes` after begun() is true."""
    since: float | None = None

    def look(*_: Any) -> None:
        nonlocal since
        if since is None and begun():
            since = time.monotonic()
        if since is not None and time.monotonic() >= since + 60 * minutes:
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def train_for(config: Config, name: str, workdir: epath.Path, minutes: float) -> int:
    """Trains a run until `minutes` after its first report; returns the step it was saved at."""
    with stopped_after(minutes, (workdir / name / "metrics.csv").exists):
        try:
            train_run(config, name, workdir)
        except Interrupted as stop:
            return stop.step
    return config.runs[name].steps


def collect(workdir: epath.Path, name: str, output: pathlib.Path) -> dict[str, Any]:
    """Copies what a run left to the output; returns its step and the means of its last metrics."""
    for file in ("metrics.csv", "overview.txt"):
        shutil.copy(workdir / name / file, output / file)
    with (output / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {row["name"]: [] for row in rows}
    for row in rows:
        logged[row["name"]].append(float(row["value"]))
    step = newest_metadata(workdir / name / "checkpoints")["step"]
    last = {key: values[-1] for key, values in logged.items()}
    rates = logged.get("images_per_second")  # none where the run ended with its first step
    return {
        "step": step,
        "median_images_per_second": statistics.median(rates) if rates else None,
        "last": last,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains and draws both; returns what summary.json holds."""
    args = parse(argv)
    config, clip, base = shortened(load_config(args.config), args)
    validate(config)
    work = epath.Path(args.output) / "work"
    summary: dict[str, Any] = {"config": args.config, "minutes": args.minutes}
    train_run(config, clip, work / "with")
    shutil.copytree(work / "with" / clip, work / "without" / clip, dirs_exist_ok=True)
    for side, adapter in SIDES.items():
        workdir, output = work / side, args.output / side
        output.mkdir(parents=True, exist_ok=True)
        variant = dataclasses.replace(config, use_adapter=adapter)
        if side == "with":
            steps = train_for(variant, base, workdir, args.minutes)
        else:
            runs = {**config.runs, base: dataclasses.replace(config.runs[base], steps=steps)}
            train_run(dataclasses.replace(variant, runs=runs), base, workdir)
        export_pipeline(variant, workdir, workdir / "export")
        draw_samples(workdir / "export", config.samples, output / "pictures")
        summary[side] = collect(workdir, base, output)
        print(f"{side} the adapter: {json.dumps(summary[side])}", flush=True)
        (args.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

"""Paired trainings on rendered scenes: does the adapter make pictures follow their prompts better?

  python -m benchmarks.paired_runs --output=runs/evidence --steps=1500 --seeds=0,1,2

For each seed one CLIP is trained, then the config's base model in several variants on it: with the
same seed, data, batches and steps, differing in the adapter alone:
  none           plain diffusion
  bounded        the config's adapter
  bound_0.3      the same with another bound
  unbounded      nothing keeps the relation from growing (the warning of the method's section 4)
Each then draws one picture for each of --count held-out prompts with the same noise, and the
checker reads colour, shape and place back. Super-resolution is left out.

OUTPUT/SEED/VARIANT/result.json is one training; a finished one is not repeated, a stopped one goes
on. OUTPUT/summary.md has mean and standard deviation over the seeds, and each pair's difference.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from benchmarks.adapter_vs_plain import collect
from benchmarks.configuration import load_config
from contextdiff_jax.config import Config, RunConfig
from contextdiff_jax.entry import hide_libraries
from contextdiff_jax.evaluation import prompt_following
from contextdiff_jax.pictures import to_uint8
from contextdiff_jax.pipeline.build import diffusion_runs
from contextdiff_jax.pipeline.cascade import Cascade, write_pictures
from contextdiff_jax.pipeline.export import export_pipeline
from contextdiff_jax.pipeline.train import train_run
from contextdiff_jax.pipeline.validation import validate


def _bounded_by(bound: float | None) -> Callable[[Config, str], Config]:
    def change(config: Config, base: str) -> Config:
        run = config.runs[base]
        adapter = dataclasses.replace(run.adapter, bound=bound)
        runs = {**config.runs, base: dataclasses.replace(run, adapter=adapter)}
        return dataclasses.replace(config, runs=runs)

    return change


VARIANTS: dict[str, Callable[[Config, str], Config]] = {
    "none": lambda config, base: dataclasses.replace(config, use_adapter=False),
    "bounded": lambda config, base: config,
    "bound_0.3": _bounded_by(0.3),
    "unbounded": _bounded_by(None),
}
REFERENCE = "none"  # what the others are paired with
MEASURES = (
    "colour_and_shape",
    "position",
    "shuffled_colour_and_shape",
    "loss",
    "relation_rms",
    "signal_gain",
    "last_steps_kl",
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paired_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--config", default="quickstart", help="NAME[:PRESET] of configs/, trained on scenes")
    add("--seeds", type=names, default=["0", "1", "2"], help="comma-separated")
    add("--variants", type=names, default=list(VARIANTS), help=", ".join(VARIANTS))
    add("--steps", type=int, help="of the base model; the config's by default")
    add("--count", type=int, default=256, help="held-out prompts")
    args = parser.parse_args(argv)
    for variant in args.variants:
        if variant not in VARIANTS:
            raise ValueError(f"variants = {variant!r}: must be of {', '.join(VARIANTS)}")
    for seed in args.seeds:
        if not seed.isdecimal():
            raise ValueError(f"seeds = {seed!r}: must be whole numbers, comma-separated")
    return args


def base_only(config: Config, seed: int, steps: int | None) -> tuple[Config, str, str]:
    """Returns the config of CLIP and base model alone, and the names of the two runs."""
    base = diffusion_runs(config)[0]
    clip = next(name for name in config.pipeline if config.runs[name].task == "contrastive")
    run = config.runs[base]
    if run.data.source != "scenes":
        raise ValueError(f"{config.name} trains on {run.data.source!r}: only scenes can be checked")
    runs = {clip: config.runs[clip], base: _of_length(run, steps or run.steps)}
    return dataclasses.replace(config, pipeline=(clip, base), runs=runs, seed=seed), clip, base


def _of_length(run: RunConfig, steps: int) -> RunConfig:
    """The costly diagnostics at the end alone, and no previews: the pictures come afterwards."""
    preview = dataclasses.replace(run.preview, every=0)
    return dataclasses.replace(run, steps=steps, diagnose_every=steps, preview=preview)


def measure(
    config: Config, workdir: epath.Path, base: str, count: int, output: pathlib.Path
) -> dict[str, float]:
    """Draws the held-out prompts and returns what the checker and the last report say."""
    export_pipeline(config, workdir, workdir / "export")
    prompts = prompt_following.held_out_prompts(config.runs[base].data.scenes, count)
    images = Cascade.load(workdir / "export").draw(prompts, batch_size=64)[base]
    write_pictures(output / "pictures", images, prompts)
    pictures = to_uint8(images)
    right = prompt_following.agreement(pictures, prompts).shares
    chance = prompt_following.agreement(pictures, prompt_following.shuffled(prompts)).shares
    found = collect(workdir, base, output)
    measures = {**found["last"], **right}
    measures["shuffled_colour_and_shape"] = chance["colour_and_shape"]
    measures["images_per_second"] = found["median_images_per_second"]
    return measures


def summary(results: Mapping[str, Mapping[str, dict[str, float]]]) -> str:
    """Returns the Markdown table of {variant: {seed: measures}}: mean +- deviation over seeds."""
    lines = [["variant", *MEASURES, "against none, seed by seed"]]
    lines.append(["---"] * len(lines[0]))
    for variant, seeds in results.items():
        cells = [_spread([m[name] for m in seeds.values() if name in m]) for name in MEASURES]
        pairs = [
            f"{measured[MEASURES[0]] - results[REFERENCE][seed][MEASURES[0]]:+.3f}"
            for seed, measured in seeds.items()
            if variant != REFERENCE and seed in results.get(REFERENCE, {})
        ]
        lines.append([variant, *cells, ", ".join(pairs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" +- {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{deviation}"


def train_pair(config: Config, args: argparse.Namespace, seed: str) -> dict[str, dict[str, float]]:
    """Trains and measures the variants of one seed; returns {variant: measures}."""
    config, clip, base = base_only(config, int(seed), args.steps)
    folder, results = args.output / seed, {}
    shared = epath.Path(folder) / "shared"
    for variant in args.variants:
        output = folder / variant
        path, workdir = output / "result.json", epath.Path(output) / "work"
        changed = VARIANTS[variant](config, base)
        done: dict[str, Any] = {"steps": changed.runs[base].steps, "count": args.count}
        if path.exists():
            found = json.loads(path.read_text())
            if {key: found[key] for key in done} != done:
                raise ValueError(f"{path} is of other steps or prompts: take another --output")
            results[variant] = found["measures"]
            continue
        train_run(config, clip, shared)
        output.mkdir(parents=True, exist_ok=True)
        shutil.copytree(shared / clip, workdir / clip, dirs_exist_ok=True)
        train_run(changed, base, workdir)
        results[variant] = measure(changed, workdir, base, args.count, output)
        path.write_text(json.dumps({**done, "measures": results[variant]}, indent=1) + "\n")
        print(f"seed {seed}, {variant}: {json.dumps(results[variant])}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Trains what is missing, writes and prints the summary; returns {variant: {seed: ...}}."""
    args = parse(argv)
    config = load_config(args.config)
    for variant in args.variants:
        checked, _, base = base_only(config, 0, args.steps)
        validate(VARIANTS[variant](checked, base))
    results: dict[str, dict[str, dict[str, float]]] = {variant: {} for variant in args.variants}
    for seed in args.seeds:
        for variant, measures in train_pair(config, args, seed).items():
            results[variant][seed] = measures
        jax.clear_caches()
        (args.output / "summary.md").write_text(summary(results))
    print(summary(results))
    return results


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

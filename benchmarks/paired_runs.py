"""Paired trainings: what does the adapter change, all else being equal?

  python -m benchmarks.paired_runs --output=runs/scenes --steps=1500 --seeds=0,1,2
  python -m benchmarks.paired_runs --output=runs/cifar10 --config=cifar10:cpu_folder \
      --data_path=PATH/TO/cifar10 --what=bits_per_dim --data=split=test --count=500 \
      --variants=none,bounded,bound_objective,none_bound_objective
  python -m benchmarks.paired_runs --output=runs/flow --config=classes:scenes --calls=4,8,16,50 \
      --variants=vp_none,vp_paper,flow_none,flow_affine,flow_affine_condition,flow_whitening

For each seed one CLIP is trained, then the config's base model in several variants on it: with the
same seed, data, batches and steps, differing in one thing alone:
  none                  plain diffusion
  bounded               the config's adapter
  bound_0.3, bound_1    the same with these bounds of |r|
  consistency           the adapter is held to make of an estimate what it makes of the image
  adapter_rate_0.1      the adapter learns at a tenth of the denoiser's rate
  unbounded             nothing keeps the relation from growing (the warning of method, section 4)
  bound_objective       the config's adapter, trained by the exact bound (diffusion.objective)
  mixed_objective       the denoiser by the config's loss, the adapter by the bound
  none_bound_objective  plain diffusion, trained by the bound
  weight_NAME           the config's adapter, with this diffusion.loss_weight
  v_weight_NAME         the same, the denoiser predicting v
  vp_none, vp_paper     the first two, by these names beside those of kind flow (docs/flow.md):
  flow_none             flow matching, uniform times; flow_none_logit_normal: times of the middle
  flow_affine           with an affine relation by kinetic energy; flow_affine_condition: one that
                        depends on the condition
  flow_whitening        with the relation fitted to the data
  flow_coupling         with a learned coupling, beta 5; flow_coupling_20: beta 20
  flow_affine_shuffled, flow_coupling_shuffled
                        the relation is told another picture's condition: does context matter?
  flow_schedule_NUMBER  r = NUMBER x0: another schedule, and no relation
contextdiff_jax.evaluate then measures --what of each, with the same prompts, images and noise.
Super-resolution is left out.

--calls draws from each training by every one of --samplers at so many network calls, too, and
OUTPUT/calls.md has the figures by their number. With an adapter ddim and dpm_solver++ stand for
euler and ab2, which do not know its bias.

OUTPUT/SEED/VARIANT/result.json is one training; a finished one is not repeated, a stopped one goes
on. OUTPUT/summary.md has mean and standard deviation over the seeds, and each pair's difference.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import jax
from absl import logging
from etils import epath

from benchmarks.adapter_vs_plain import collect, with_data
from benchmarks.configuration import load_config
from benchmarks.placed_figures import PLACED, placed_figures
from contextdiff_jax.config import Config, RunConfig, from_config_dict, with_task
from contextdiff_jax.diffusion.weights import WeightName
from contextdiff_jax.entry import hide_libraries
from contextdiff_jax.evaluate import PLANS
from contextdiff_jax.evaluation.evaluation import Settings, evaluate
from contextdiff_jax.evaluation.prompt_following import ASPECTS
from contextdiff_jax.evaluation.results import read_results
from contextdiff_jax.generation.sampler_flags import overridden, parse_overrides
from contextdiff_jax.runs.build import diffusion_runs
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow_config import FlowConfig


def _changed(part: str, **changes: Any) -> Callable[[Config, str], Config]:
    """Returns the change of some fields of a section of the base run, or of its task."""

    def change(config: Config, base: str) -> Config:
        run = config.runs[base]
        if hasattr(run, part):
            section = dataclasses.replace(getattr(run, part), **changes)
            run = dataclasses.replace(run, **{part: section})
        else:
            section = dataclasses.replace(getattr(run.task, part), **changes)
            run = with_task(run, **{part: section})
        return dataclasses.replace(config, runs={**config.runs, base: run})

    return change


def _without_adapter(config: Config, base: str) -> Config:
    return dataclasses.replace(config, use_adapter=False)


_BY_BOUND = _changed("diffusion", objective="bound", loss_weight="x0")
VARIANTS: dict[str, Callable[[Config, str], Config]] = {
    "none": _without_adapter,
    "bounded": lambda config, base: config,
    "bound_0.3": _changed("adapter", limit=0.3),
    "bound_1": _changed("adapter", limit=1.0),
    "consistency": _changed("diffusion", relation_consistency=1.0),
    "adapter_rate_0.1": _changed("optimizer", adapter_rate=0.1),
    "unbounded": _changed("adapter", limit=None),
    "bound_objective": _BY_BOUND,
    "mixed_objective": _changed("diffusion", objective="mixed"),
    "none_bound_objective": lambda config, base: _without_adapter(_BY_BOUND(config, base), base),
}
for _name in get_args(WeightName):
    VARIANTS[f"weight_{_name}"] = _changed("diffusion", loss_weight=_name)
    VARIANTS[f"v_weight_{_name}"] = _changed("diffusion", prediction="v", loss_weight=_name)


def _flow(prediction: str = "v", **settings: Any) -> Callable[[Config, str], Config]:
    """Returns the change to kind flow with these settings of its section."""
    section = DiffusionConfig(kind="flow", flow=FlowConfig(**settings), prediction=prediction)
    read = {name: getattr(section, name) for name in ("kind", "flow", "prediction")}
    unread = ("schedule", "objective", "loss_weight", "relation_consistency")
    read |= {name: getattr(section, name) for name in unread}
    section_change, euler = (
        _changed("diffusion", **read),
        _changed("sampler", name="euler", eta=0.0),
    )

    def change(config: Config, base: str) -> Config:
        sampler = config.runs[base].task.sampler
        if sampler.name in ("ddpm", "plms") or sampler.eta:  # not of a relation on the flow
            config = euler(config, base)
        return _without_adapter(section_change(config, base), base)

    return change


VARIANTS |= {
    "vp_none": VARIANTS["none"],
    "vp_paper": VARIANTS["bounded"],
    "flow_none": _flow(),
    "flow_none_logit_normal": _flow(times="logit_normal"),
    "flow_affine": _flow(relation="affine"),
    "flow_affine_condition": _flow(relation="affine", by_condition=True),
    "flow_whitening": _flow(relation="whitening"),
    "flow_coupling": _flow(relation="coupling"),
    "flow_coupling_20": _flow(relation="coupling", beta=20.0),
    "flow_affine_shuffled": _flow(relation="affine", by_condition=True, shuffle_condition=True),
    "flow_coupling_shuffled": _flow(relation="coupling", shuffle_condition=True),
    "flow_schedule_-0.35": _flow(relation="scaled", scale=-0.35),
    "flow_schedule_1": _flow(relation="scaled", scale=1.0),
    "flow_schedule_2": _flow(relation="scaled", scale=2.0),
}
REFERENCE = "none"  # what the others are paired with
DRAWN = ("scenes", "fid", *PLACED)  # of drawn pictures: what guidance changes
WHAT = (*DRAWN, "bits_per_dim")
BITS = ("bits_per_dim", "prior", "kl", "decoder", "volume")  # of a bound, or of a flow's ODE
LOGGED = ("loss", "relation_rms", "signal_gain", "last_steps_kl")  # of training, beside --what
LOGGED += ("error", "kinetic_energy", "coupling_kl", "error_at_100", "images_per_second")
SAMPLERS = ("euler", "ab2", "heun", "ddim", "dpm_solver++")
WITH_ADAPTER = {"euler": "ddim", "ab2": "dpm_solver++"}
_AT = " at "  # between a figure's name and how many calls of which sampler


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    def scales(text: str) -> list[float]:
        return [float(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paired_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--config", default="quickstart", help="NAME[:PRESET] of configs/")
    add("--data_path", default="", help="of every run")
    add("--seeds", type=names, default=["0", "1", "2"], help="comma-separated")
    add("--variants", type=names, default=["none", "bound_0.3", "bound_1", "unbounded"])
    add("--steps", type=int, help="of the base model; the config's by default")
    add("--what", type=names, default=["scenes", "fid"], help=f"measured: {', '.join(WHAT)}")
    add("--count", type=int, default=256, help="prompts or images measured")
    add("--guidance", type=scales, default=[], help="further guidance scales to draw at, w1,w2,...")
    add("--calls", type=names, default=[], help="numbers of network calls to draw with, n1,n2,...")
    add("--samplers", type=names, default=["euler", "ab2"], help="that --calls draws by")
    add("--data", action="append", default=[], help="field=value of what is measured on")
    args = parser.parse_args(argv)
    for flag, allowed in (("variants", VARIANTS), ("what", WHAT), ("samplers", SAMPLERS)):
        for name in getattr(args, flag):
            if name not in allowed:
                raise ValueError(f"{flag} = {name!r}: must be of {', '.join(allowed)}")
    for scale in args.guidance:
        if not 0 <= scale < math.inf:
            raise ValueError(f"guidance = {scale:g}: must be numbers from 0, comma-separated")
    if args.guidance and not set(args.what) & set(DRAWN):
        raise ValueError(
            f"guidance = {args.guidance}: changes {' and '.join(DRAWN)} alone; --what must have one"
        )
    for seed in args.seeds:
        if not seed.isdecimal():
            raise ValueError(f"seeds = {seed!r}: must be whole numbers, comma-separated")
    for calls in args.calls:
        if not calls.isdecimal() or not 0 < int(calls) <= 1000:
            raise ValueError(f"calls = {calls!r}: must be whole numbers in 1..1000")
    return args


def base_only(config: Config, seed: int, args: argparse.Namespace) -> tuple[Config, str, str]:
    """Returns the config of CLIP and base model alone, and the names of the two runs."""
    base = diffusion_runs(config)[0]
    clip = next(name for name in config.pipeline if config.runs[name].task.encoder_config)
    run = config.runs[base]
    runs = {clip: config.runs[clip], base: _of_length(run, args.steps or run.steps)}
    runs = {name: with_data(run, args.data_path) for name, run in runs.items()}
    # A config may leave the adapter out; of the variants it is `none` that does.
    changes = {"pipeline": (clip, base), "runs": runs, "seed": seed, "use_adapter": True}
    return dataclasses.replace(config, **changes), clip, base


def _of_length(run: RunConfig, steps: int) -> RunConfig:
    """The costly diagnostics at the end alone, and no previews: the pictures come afterwards."""
    preview = dataclasses.replace(run.task.preview, every=0)
    run = dataclasses.replace(run, steps=steps)
    return with_task(run, diagnose_every=steps, preview=preview)


def drawings(
    config: Config, base: str, args: argparse.Namespace
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns {what follows a figure's name: (folder, --sampler)} of every drawing measured."""
    found = {"": ("check", ())}
    for scale in args.guidance:
        settings = (f"{base}.guidance_scale={scale:g}",)
        found[f", guidance {scale:g}"] = (f"check_{scale:g}", settings)
    for name in args.samplers if args.calls else ():
        sampler = WITH_ADAPTER.get(name, name) if config.use_adapter else name
        for calls in args.calls:
            steps = (int(calls) + 1) // 2 if sampler == "heun" else int(calls)
            settings = (f"{base}.name={sampler}", f"{base}.num_steps={steps}", f"{base}.eta=0")
            found[f"{_AT}{calls} calls of {name}"] = (f"check_{name}_{calls}", settings)
    return found


def _drawn_by(config: Config, base: str, settings: tuple[str, ...]) -> Config:
    """Returns the config with these settings of --sampler in its base run."""
    run = config.runs[base]
    changes = parse_overrides(settings, [base])[base]
    sampler = overridden(run.task.sampler, changes, f"sampler of {base}")
    return dataclasses.replace(config, runs={**config.runs, base: with_task(run, sampler=sampler)})


def measure(
    config: Config, workdir: epath.Path, base: str, args: argparse.Namespace, output: pathlib.Path
) -> dict[str, float]:
    """Evaluates a finished training; returns its figures and the last ones logged in training."""
    export_pipeline(config, workdir, workdir / "export")
    found: dict[str, float] = {}
    for suffix, (folder, sampler) in drawings(config, base, args).items():
        settings = Settings(
            output=str(output / folder),
            export=str(workdir / "export"),
            count=args.count,
            data=tuple(args.data),
            sampler=sampler,
        )
        what = [name for name in args.what if not sampler or name in DRAWN]
        if not what:
            continue
        evaluate(settings, {name: PLANS[name] for name in what})
        values = figures(read_results(epath.Path(output / folder)), base)
        found |= {f"{name}{suffix}": value for name, value in values.items()}
    last = collect(workdir, base, output)["last"]
    return found | {name: last[name] for name in LOGGED if name in last}


def figures(results: Mapping[str, Any], base: str) -> dict[str, float]:
    """Returns the figures of an evaluation's results that are compared, by name."""
    found: dict[str, float] = {}
    if "scenes" in results:
        shares = results["scenes"].values[base]
        found["colour and shape"] = shares["prompts"]["colour_and_shape"]
        found |= {name: shares["prompts"][name] for name in ASPECTS}
        found["colour and shape, shuffled"] = shares["shuffled"]["colour_and_shape"]
    if "fid" in results:
        values = results["fid"].values
        found |= {name: value for name, value in values.items() if not isinstance(value, dict)}
    if "bits_per_dim" in results:
        values = results["bits_per_dim"].values
        found |= {name: values[name] for name in BITS if name in values}
    return found | placed_figures(results, base)


def summary(results: Mapping[str, Mapping[str, dict[str, float]]]) -> str:
    """Returns Markdown of {variant: {seed: figures}}: every figure, then the differences of pairs.

    Both as mean +- standard deviation over the seeds.
    """
    differences = {
        variant: {
            seed: _difference(figures, results[REFERENCE][seed])
            for seed, figures in seeds.items()
            if seed in results[REFERENCE]
        }
        for variant, seeds in results.items()
        if variant != REFERENCE and REFERENCE in results
    }
    text = _table(results, "")
    if differences:
        text += f"\nMinus `{REFERENCE}` of the same seed:\n\n" + _table(differences, "+")
    return text


def _difference(figures: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    return {name: figures[name] - reference[name] for name in figures if name in reference}


def _table(results: Mapping[str, Mapping[str, dict[str, float]]], sign: str) -> str:
    every = [figures for seeds in results.values() for figures in seeds.values()]
    names = dict.fromkeys(name for figures in every for name in figures)
    names = [name for name in names if _AT not in name]
    lines = [["variant", "seeds", *names], ["---"] * (len(names) + 2)]
    for variant, seeds in results.items():
        cells = [_spread([f[name] for f in seeds.values() if name in f], sign) for name in names]
        lines.append([variant, str(len(seeds)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def by_calls(results: Mapping[str, Mapping[str, dict[str, float]]]) -> str:
    """Returns Markdown: for each figure, a row a variant and sampler, a column a number of calls.

    Each cell is mean +- standard deviation over the seeds; "" where nothing was drawn by calls.
    """
    cells: dict[str, dict[tuple[str, str], dict[str, list[float]]]] = {}
    for variant, seeds in results.items():
        for name, value in (item for found in seeds.values() for item in found.items()):
            figure, at, drawing = name.partition(_AT)
            if not at:
                continue
            calls, _, sampler = drawing.partition(" calls of ")
            row = cells.setdefault(figure, {}).setdefault((variant, sampler), {})
            row.setdefault(calls, []).append(value)
    text = ""
    for figure, rows in cells.items():
        numbers = sorted({calls for row in rows.values() for calls in row}, key=int)
        lines = [["variant", "sampler", *numbers], ["---"] * (len(numbers) + 2)]
        for who, row in rows.items():
            lines.append([*who, *(_spread(row.get(calls, []), "") for calls in numbers)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        text += f"## {figure}, by network calls\n\n{table}\n\n"
    return text


def _spread(values: Sequence[float], sign: str) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4g}{deviation}"


def train_variants(
    config: Config, args: argparse.Namespace, seed: str
) -> dict[str, dict[str, float]]:
    """Trains and measures the variants of one seed; returns {variant: figures}."""
    config, clip, base = base_only(config, int(seed), args)
    folder, results = args.output / seed, {}
    shared = epath.Path(folder) / "shared"
    for variant in args.variants:
        output = folder / variant
        path, workdir = output / "result.json", epath.Path(output) / "work"
        changed = VARIANTS[variant](config, base)
        asked = {"steps": changed.runs[base].steps, "count": args.count}
        asked |= {"what": args.what, "data": args.data, "guidance": args.guidance}
        asked |= {"calls": args.calls, "samplers": args.samplers if args.calls else []}
        if path.exists():
            found = json.loads(path.read_text())
            # Keys that are newer than the result have the value they stand for.
            older = {"guidance": [], "calls": [], "samplers": []}
            same = {key: {**older, **found}.get(key) for key in asked} == asked
            if not same or from_config_dict(found["config"]) != changed:
                raise ValueError(f"{path} is of another call: take another --output")
            results[variant] = found["figures"]
            continue
        train_run(config, clip, shared)
        output.mkdir(parents=True, exist_ok=True)
        shutil.copytree(shared / clip, workdir / clip, dirs_exist_ok=True)
        train_run(changed, base, workdir)
        results[variant] = measure(changed, workdir, base, args, output)
        kept = {**asked, "figures": results[variant], "config": dataclasses.asdict(changed)}
        path.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"seed {seed}, {variant}: {json.dumps(results[variant])}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Trains what is missing, writes and prints the summary; returns {variant: {seed: ...}}."""
    args = parse(argv)
    config = load_config(args.config)
    checked, _, base = base_only(config, 0, args)
    for variant in args.variants:
        changed = VARIANTS[variant](checked, base)
        for _, settings in drawings(changed, base, args).values():
            validate(_drawn_by(changed, base, settings))
    source = checked.runs[base].data.source
    if "scenes" in args.what and source != "scenes":
        raise ValueError(
            f"what = 'scenes': {args.config} trains on {source!r}; give another --what"
        )
    results: dict[str, dict[str, dict[str, float]]] = {variant: {} for variant in args.variants}
    for seed in args.seeds:
        for variant, found in train_variants(config, args, seed).items():
            results[variant][seed] = found
        jax.clear_caches()
        (args.output / "summary.md").write_text(summary(results))
        if args.calls:
            (args.output / "calls.md").write_text(by_calls(results))
    print(summary(results) + by_calls(results))
    return results


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

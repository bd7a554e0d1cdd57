"""Paired trainings: what does the adapter change, or a flow, all else being equal?

  python -m benchmarks.paired_runs --output=runs/scenes --steps=1500 --seeds=0,1,2
  python -m benchmarks.paired_runs --output=runs/cifar10 --config=cifar10:cpu_folder \
      --data_path=PATH/TO/cifar10 --what=bits_per_dim --data=split=test --count=500 \
      --variants=none,bounded,bound_objective,none_bound_objective
  python -m benchmarks.paired_runs --output=runs/flow --config=classes:scenes --calls=4,8,16,50 \
      --variants=vp_none,vp_paper,flow_none,flow_affine,flow_affine_condition,flow_whitening

For each seed one CLIP is trained, then the config's base model in several variants on it
(benchmarks/paired_variants.py lists them): with the same seed, data, batches and steps, differing
in one thing alone. --what of each is measured then, with the same prompts, images and noise:
  scenes        do pictures of rendered scenes show what held-out prompts say?
  fid           Frechet distance to held-out pictures, precision and recall, by the CLIP of the seed
                or by --features=inception.safetensors
  bits_per_dim  the bound of held-out pictures, or of flows their density
  boxes         of layouts; in_context, of in-context runs: benchmarks/placed_figures.py
Super-resolution is left out. --sampler=field=value changes the sampler of all variants, and
--config.KEY=VALUE, as for main, what no variant sets; flows set all of diffusion.flow.

--calls draws from each training by every one of --samplers at so many network calls, too. With an
adapter ddim and dpm_solver++ stand for euler and ab2, which do not know its bias; of MeanFlow
its own steps stand for euler.

OUTPUT/SEED/VARIANT/result.json is one training, check/report.html beside it has its pictures; a
finished one is not repeated, a stopped one goes on. OUTPUT/reference has the features of the real
pictures, for all seeds, and OUTPUT/compiled the compiled programs.
OUTPUT/summary.md has mean and standard deviation over the seeds, and each pair's differences to
none, vp_none, flow_none and flow_x0_none; calls.md and calls.png have the figures by their number
of calls.
Seconds a step, and images a second, are of this machine with whatever else it did.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from etils import epath

from benchmarks.adapter_vs_plain import collect, with_data
from benchmarks.configuration import load_config, parse_with_changes
from benchmarks.paired_measures import DRAWINGS, DRAWN, Drawing, plan_drawings
from benchmarks.paired_tables import Results, by_calls, plot, suffix_of, summary
from benchmarks.paired_variants import VARIANTS
from benchmarks.placed_figures import PLACED, placed_figures
from contextdiff_jax.command_line import overridden_key
from contextdiff_jax.config import Config, RunConfig, from_config_dict, with_task
from contextdiff_jax.entry import hide_libraries, keep_compiled_programs
from contextdiff_jax.evaluate import PLANS
from contextdiff_jax.evaluation.evaluation import Settings, evaluate
from contextdiff_jax.evaluation.feature_networks import CLIP_FEATURES
from contextdiff_jax.evaluation.results import Result, read_results
from contextdiff_jax.generation.sampler_flags import overridden, parse_overrides
from contextdiff_jax.runs.build import diffusion_runs, locate_in
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.runs.validation import validate

BITS_PER_DIM = "bits_per_dim"
WHAT = (*DRAWN, BITS_PER_DIM, *PLACED)
BITS = (BITS_PER_DIM, "prior", "kl", "decoder", "volume")  # of a bound, or of a flow's ODE
LOGGED = ("loss", "relation_rms", "signal_gain", "last_steps_kl")  # of training, beside --what
LOGGED += ("error", "mean_error", "kinetic_energy", "coupling_kl", "error_at_100")
SAMPLERS = ("euler", "ab2", "heun", "ddim", "dpm_solver++")
WITH_ADAPTER = {"euler": "ddim", "ab2": "dpm_solver++"}


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
    add("--config", default="quickstart:adapter", help="NAME[:PRESET] of configs/")
    add("--data_path", default="", help="of every run")
    add("--seeds", type=names, default=["0", "1", "2"], help="comma-separated")
    add("--variants", type=names, default=["none", "bound_0.3", "bound_1", "unbounded"])
    add("--steps", type=int, help="of the base model; the config's by default")
    add("--what", type=names, default=["scenes", "fid"], help=f"measured: {', '.join(WHAT)}")
    add("--count", type=int, default=256, help="prompts or images measured")
    add("--guidance", type=scales, default=[], help="further guidance scales to draw at, w1,w2,...")
    add("--calls", type=names, default=[], help="numbers of network calls to draw with, n1,n2,...")
    add("--samplers", type=names, default=["euler", "ab2"], help="that --calls draws by")
    add("--sampler", action="append", default=[], help="field=value of every variant's sampler")
    add("--data", action="append", default=[], help="field=value of what is measured on")
    add("--features", default=CLIP_FEATURES, help="of fid: Inception's weights; clip: the seed's")
    args, args.changes = parse_with_changes(parser, argv)
    for flag, allowed in (("variants", VARIANTS), ("what", WHAT), ("samplers", SAMPLERS)):
        for name in getattr(args, flag):
            if name not in allowed:
                raise ValueError(f"{flag} = {name!r}: must be one of {', '.join(allowed)}")
    for scale in args.guidance:
        if not 0 <= scale < math.inf:
            raise ValueError(f"guidance = {scale:g}: must be numbers from 0, comma-separated")
    if args.guidance and not set(args.what) & set(DRAWN):
        raise ValueError(
            f"guidance = {args.guidance}: changes {' and '.join(DRAWN)} alone; --what must have one"
        )
    if args.features != CLIP_FEATURES and not pathlib.Path(args.features).exists():
        raise ValueError(
            f"features = {args.features!r}: must be {CLIP_FEATURES!r} or a file of Inception"
        )
    if args.count < 2:
        raise ValueError(f"count = {args.count}: must be at least 2, prompts are shuffled")
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
    clips = [name for name in config.pipeline if config.runs[name].task.encoder_config]
    if not clips:
        raise ValueError(f"config = {args.config!r}: must have a run that trains a CLIP")
    clip = clips[0]
    run = config.runs[base]
    runs = {clip: config.runs[clip], base: _of_length(run, args.steps or run.steps)}
    runs = {name: with_data(run, args.data_path) for name, run in runs.items()}
    # A config may leave the adapter out; of the variants it is `none` that does.
    changes = {"pipeline": (clip, base), "runs": runs, "seed": seed, "use_adapter": True}
    config = dataclasses.replace(config, **changes)
    return _drawn_by(config, base, args.sampler), clip, base


def _of_length(run: RunConfig, steps: int) -> RunConfig:
    """The costly diagnostics at the end alone, and no previews: the pictures come afterwards."""
    preview = dataclasses.replace(run.task.preview, every=0)
    run = dataclasses.replace(run, steps=steps)
    return with_task(run, diagnose_every=steps, preview=preview)


def check_kept(config: Config, changed: Config, changes: Sequence[str], variant: str) -> None:
    """Raises ValueError for a change of --config that is not in the variant's config any more."""
    for change in changes:
        asked, found = (
            functools.reduce(lambda part, key: (part or {}).get(key), overridden_key(change), each)
            for each in (dataclasses.asdict(config), dataclasses.asdict(changed))
        )
        if asked != found:
            raise ValueError(f"{change}: must be left out, {variant!r} here has {found!r}")


def drawings(config: Config, base: str, args: argparse.Namespace) -> tuple[Drawing, ...]:
    """Returns every drawing that is measured, that of the run's own sampler first."""
    found, task = [Drawing("", "drawn")], config.runs[base].task
    biased = task.biased(config.use_adapter)
    for scale in args.guidance:
        settings = (f"{base}.guidance_scale={scale:g}",)
        found.append(Drawing(f", guidance {scale:g}", f"drawn_{scale:g}", settings))
    for name in args.samplers if args.calls else ():
        sampler = WITH_ADAPTER.get(name, name) if biased else name
        if task.diffusion.mean_velocities and name == "euler":
            sampler = "mean_flow"
        for calls in args.calls:
            steps = _steps_of(int(calls), sampler, task.sampler.final_timestep)
            settings = (f"{base}.name={sampler}", f"{base}.num_steps={steps}", f"{base}.eta=0")
            found.append(Drawing(suffix_of(calls, name), f"drawn_{name}_{calls}", settings))
    return tuple(found)


def _steps_of(calls: int, sampler: str, final: int) -> int:
    """Returns how many steps so many network calls are; final: the last time."""
    if sampler != "heun":
        return calls
    steps, rest = divmod(calls + (final == 0), 2)
    if rest:
        raise ValueError(
            f"calls = {calls}: must be {'odd' if final == 0 else 'even'} where --samplers has "
            f"heun, n steps of which that end at time {final} are 2 n{' - 1' * (final == 0)} calls"
        )
    return steps


def _drawn_by(config: Config, base: str, settings: Sequence[str]) -> Config:
    """Returns the config with these settings of --sampler in its base run."""
    run = config.runs[base]
    changes = parse_overrides(settings, [base])[base]
    sampler = overridden(run.task.sampler, changes, f"sampler of {base}")
    return dataclasses.replace(config, runs={**config.runs, base: with_task(run, sampler=sampler)})


def measure(
    config: Config, workdir: epath.Path, base: str, args: argparse.Namespace, output: pathlib.Path
) -> dict[str, float]:
    """Evaluates a finished training; returns its figures, and those of the training itself."""
    export_pipeline(config, workdir, workdir / "export")
    settings = Settings(
        output=str(output / "check"),
        export=str(workdir / "export"),
        count=args.count,
        data=tuple(args.data),
        features=args.features,
        clip=str(locate_in(workdir)(config.encoders.clip)),
    )
    plans = {}
    if what := tuple(name for name in args.what if name in DRAWN):
        reference = epath.Path(args.output) / "reference"  # of every seed and variant
        plans[DRAWINGS] = plan_drawings(drawings(config, base, args), what, reference)
    plans |= {name: PLANS[name] for name in args.what if name not in DRAWN}
    evaluate(settings, plans)
    found = figures(read_results(settings.output), base)
    training = collect(workdir, base, output)
    if rate := training["median_images_per_second"]:
        found["seconds a step"] = config.runs[base].batch_size / rate
    last = training["last"]
    return found | {name: last[name] for name in LOGGED if name in last}


def figures(results: Mapping[str, Result], base: str) -> dict[str, float]:
    """Returns the figures of an evaluation's results that are compared, by name."""
    found = dict(results[DRAWINGS].values) if DRAWINGS in results else {}
    if BITS_PER_DIM in results:
        values = results[BITS_PER_DIM].values
        found |= {name: values[name] for name in BITS if name in values}
    return found | placed_figures(results, base)


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
        asked |= {"features": args.features}
        if path.exists():
            found = json.loads(path.read_text())
            # Keys that are newer than the result have the value they stand for.
            older = {"guidance": [], "calls": [], "samplers": [], "features": CLIP_FEATURES}
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
    config = load_config(args.config, args.changes)
    checked, _, base = base_only(config, 0, args)
    for variant in args.variants:
        changed = VARIANTS[variant](checked, base)
        check_kept(config, changed, args.changes, variant)
        for drawing in drawings(changed, base, args):
            validate(_drawn_by(changed, base, drawing.settings))
    source = checked.runs[base].data.source
    if "scenes" in args.what and source != "scenes":
        raise ValueError(
            f"what = 'scenes': {args.config} trains on {source!r}; give another --what"
        )
    keep_compiled_programs(epath.Path(args.output) / "compiled")
    results: dict[str, dict[str, dict[str, float]]] = {variant: {} for variant in args.variants}
    for seed in args.seeds:
        for variant, found in train_variants(config, args, seed).items():
            results[variant][seed] = found
        jax.clear_caches()
        write_tables(results, args.output)
    print(summary(results) + by_calls(results))
    return results


def write_tables(results: Results, output: pathlib.Path) -> None:
    """Writes summary.md, and calls.md and calls.png where something was drawn by calls."""
    (output / "summary.md").write_text(summary(results))
    if tables := by_calls(results):
        (output / "calls.md").write_text(tables)
        plot(results, epath.Path(output) / "calls.png")


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    hide_libraries()
    main()

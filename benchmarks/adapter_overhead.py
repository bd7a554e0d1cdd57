"""What the context-aware adapter costs: operations at the paper's sizes, and measured time.

  python -m benchmarks.adapter_overhead                  # configs/laion.py, a minute or two
  python -m benchmarks.adapter_overhead --measure        # quickstart:adapter, timed here

Counted are XLA's operations (cost_analysis of the lowered program) per image, from shapes alone:
neither weights nor memory for them are needed. Loops count once there, so scans are unrolled, and
nothing is rematerialized. The adapter's cost is that of the adapter network, of CLIP's image
encoder, and of CLIP's text encoder where only the adapter reads it.
  training: the gradient of the loss of one image. The adapter's share is relative to the
    denoiser's gradient without the encoding of its own text, which is stated apart.
  sampling: one guided step (two estimates of the denoiser). The adapter runs twice, at this time
    and the next, on one encoding of the estimate by CLIP. Texts are encoded once per picture.

--measure times real training steps (EMA and all) and whole sampling runs with and without the
adapter, in turns, random weights. At such toy sizes the adapter weighs far more than in the paper.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.configuration import load_config
from benchmarks.stages import Stage, abstract_stage, random_stage
from benchmarks.turns import Side, compare, load, take_turns
from contextdiff_jax.config import Config
from contextdiff_jax.runs.build import diffusion_runs
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.task_config import with_networks
from contextdiff_jax.training.optimizer import make_optimizer
from contextdiff_jax.training.state import TrainState
from contextdiff_jax.training.step import make_train_step

AIMS = {"training": 0.05, "sampling": 0.02}


def flops(f: Callable, *args: Any) -> float:
    """Returns XLA's count of the operations of f for arguments of these shapes."""
    # A scan is a Python loop then, and thus counted as often as it runs.
    with jax.disable_jit():
        lowered = jax.jit(f).lower(*args)
    return lowered.cost_analysis()["flops"]


def unrolled(config: Config) -> Config:
    """Returns the config with every block spelled out and nothing computed twice."""

    def plain(network: Any) -> Any:
        if not hasattr(network, "scan_blocks"):
            return network
        return dataclasses.replace(network, scan_blocks=False, remat="none")

    runs = {
        name: dataclasses.replace(run, task=with_networks(run.task, plain))
        for name, run in config.runs.items()
    }
    return dataclasses.replace(config, runs=runs)


def count(tree: Any) -> int:
    """Returns the number of parameters in a tree of shapes or arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def training_flops(stage: Stage) -> float:
    """Returns the operations of the gradient of one image's loss, text encoding left out."""
    frozen = stage.frozen
    gradient = jax.grad(stage.task.loss, has_aux=True)
    total = flops(gradient, stage.params, frozen, stage.batch, jax.random.key(0))
    (text,) = (c for c in stage.task.conditions if c.captioned)
    return total - flops(functools.partial(text.encode, {}), frozen, stage.batch)


def sampling_flops(stage: Stage) -> float:
    """Returns the operations of one sampling step for one image."""
    keys = sample_keys(0, jnp.arange(1))

    def steps(number: int) -> float:
        sampler = dataclasses.replace(stage.task.sampler, num_steps=number)
        draw = lambda p, f, b, k: stage.task.sample(p, f, b, k, sampler)  # noqa: E731
        return flops(draw, stage.params, stage.frozen, stage.drawn, keys)

    # What happens once per picture cancels.
    return steps(2) - steps(1)


def encoder_flops(stage: Stage) -> dict[str, float]:
    """Returns the operations of each encoder for one image or prompt."""
    batch, frozen = stage.batch, stage.frozen
    encoders = stage.task.encoders()
    image = encoders.pop("clip_image")
    pixels = jax.ShapeDtypeStruct((1, *stage.task.space.shape), jnp.float32)
    found = {"clip_image": flops(image.tokens, frozen[image.identity], pixels)}
    for name, encoder in encoders.items():
        prefix = {"text": "text", "clip_text": "clip"}[name]
        prompt = batch[f"{prefix}_ids"], batch[f"{prefix}_mask"]
        found[name] = flops(encoder.encode, frozen[encoder.identity], *prompt)
    return found


def count_stage(config: Config, name: str) -> dict[str, Any]:
    """Prints and returns parameters, operations and the adapter's share of one stage."""
    plain, full = (abstract_stage(config, name, 1, adapter=adapter) for adapter in (False, True))
    parameters = {name: count(tree) for name, tree in full.params.items()}
    parameters |= {name: count(each.params) for name, each in full.task.encoders().items()}
    encoders = encoder_flops(full)
    print(f"{name}, {full.task.resolution}x{full.task.resolution}")
    print("  parameters: " + ", ".join(f"{k} {v:,}" for k, v in parameters.items()))
    print("  GFLOP of encoders: " + ", ".join(f"{k} {v / 1e9:.1f}" for k, v in encoders.items()))
    result = {"parameters": parameters, "encoder_flops": encoders}
    for what, measure in (("training", training_flops), ("sampling", sampling_flops)):
        without, with_adapter = measure(plain), measure(full)
        if what == "training":
            with_adapter += encoders.get("clip_text", 0.0)
        share = with_adapter / without - 1.0
        met = share <= AIMS[what]
        print(
            f"  {what}: {without / 1e9:,.1f} GFLOP without the adapter, "
            f"{with_adapter / 1e9:,.1f} with it: {share:+.2%}, "
            f"aim <= {AIMS[what]:.0%} {'met' if met else 'missed'}"
        )
        result[what] = {"without": without, "with": with_adapter, "share": share, "met": met}
    return result


def measure_stage(config: Config, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Times training steps and sampling with and without the adapter, in turns."""
    run = config.runs[name]
    batch_size = args.batch_size or run.batch_size
    stages = {
        label: random_stage(config, name, batch_size, adapter=adapter)
        for label, adapter in (("with", True), ("without", False))
    }
    result = {}
    for what, make in (("training", training_run), ("sampling", sampling_run)):
        print(f"{name}, {what}, batch {batch_size}:")
        sides = [
            Side(label, make(stage, config, name), batch_size) for label, stage in stages.items()
        ]
        rates = take_turns(sides, args.turns, args.seconds)
        result[what] = {"rates": rates} | compare(rates, "without", "with")
        print(f"  time with the adapter: {result[what]['ratio_of_medians'] - 1.0:+.1%}")
    return result


def training_run(stage: Stage, config: Config, name: str) -> Callable[[], Any]:
    """Returns a function that does one real training step."""
    run = config.runs[name]
    optimizer = make_optimizer(run.optimizer, run.steps)
    params = jax.tree.map(jnp.copy, stage.params)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        failed_at=jnp.full((), -1, jnp.int32),
    )
    step = make_train_step(
        stage.task, optimizer, seed=config.seed, ema_decay=run.optimizer.ema_decay
    )
    step = jax.jit(step, donate_argnums=0)

    def do() -> Any:
        nonlocal state
        state, metrics = step(state, stage.frozen, stage.batch)
        return jax.block_until_ready(metrics)

    return do


def sampling_run(stage: Stage, config: Config, name: str) -> Callable[[], Any]:
    """Returns a function that draws a batch with the stage's own sampler."""
    keys = sample_keys(config.seed, jnp.arange(len(stage.batch["present"])))
    draw = jax.jit(lambda *inputs: stage.task.sample(*inputs, stage.task.sampler))
    inputs = (stage.params, stage.frozen, stage.drawn, keys)
    return lambda: jax.block_until_ready(draw(*inputs))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.adapter_overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", help="NAME[:PRESET] of configs/; laion, or quickstart:adapter with --measure")
    add("--stages", help="e.g. base or base,sr; all of the config by default")
    add("--measure", action="store_true", help="time on this machine instead of counting")
    add("--batch_size", type=int, help="with --measure; the config's by default")
    add("--turns", type=int, default=5, help="with --measure")
    add("--seconds", type=float, default=5.0, help="of a turn, with --measure")
    add("--json", type=pathlib.Path, help="file for the results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Counts or measures; returns what --json writes."""
    args = parse(argv)
    config = load_config(args.config or ("quickstart:adapter" if args.measure else "laion"))
    known = diffusion_runs(config)
    stages = args.stages.split(",") if args.stages else known
    if not set(stages) <= set(known):
        raise ValueError(f"stages = {args.stages!r}: the config has {', '.join(known)}")
    for name in stages:
        if (kind := config.runs[name].task.diffusion.kind) != "vp":
            raise ValueError(
                f"runs.{name}.task.diffusion.kind = {kind!r}: must be 'vp', the process of the "
                "adapter; take another config"
            )
    results: dict[str, Any] = {"jax": jax.__version__, "load_before": load()}
    if args.measure:
        results |= {name: measure_stage(config, name, args) for name in stages}
        print(f"before: {results['load_before']}; after: {load()}")
    else:
        results |= {name: count_stage(unrolled(config), name) for name in stages}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()

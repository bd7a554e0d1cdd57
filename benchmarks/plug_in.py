"""What sampling with r(x0_hat) does to a distribution: two points, everything exact but that.

  python -m benchmarks.plug_in --output=docs/evidence      # seconds

x0 is 1 with probability p, else -1. Given x_t, the posterior of x0 under the biased marginal
(eq. 1) is known, so the denoiser is the exact posterior mean: nothing is trained. The project's
sampler (DDIM, eta 0) starts from the quantiles of N(0, 1), so no sample noise is left either. What
remains beside the step size: the flow that carries N(0, 1) to the data needs E[r(x0) | x_t], a
sampler knows E[x0 | x_t] alone and takes r of that. They agree where r is linear.

Writes plug_in.json and plug_in.md: the share of samples at 1, which should be p.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import Schedule, expand, make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.loop import sample

Relation = Callable[[jax.Array], jax.Array]

RELATIONS: dict[str, Relation] = {
    "0 (plain diffusion)": lambda x: 0.0 * x,
    "0.9 x0": lambda x: 0.9 * x,
    "0.3 tanh(3 x0)": lambda x: 0.3 * jnp.tanh(3 * x),
    "tanh(x0)": jnp.tanh,
    "tanh(3 x0)": lambda x: jnp.tanh(3 * x),
    "tanh(10 x0)": lambda x: jnp.tanh(10 * x),
}
"""Odd, and bounded by 1: an adapter that has saturated is like the last."""


def share_at_one(
    schedule: Schedule, relation: Relation, share: float, steps: int, count: int
) -> float:
    """Returns the share of samples that end nearer to 1 than to -1. share: that of the data."""
    one = jnp.float32(1.0)

    def denoise(x: jax.Array, t: jax.Array, keep: jax.Array) -> jax.Array:
        time = t.astype(jnp.int32)
        mean = schedule.signal(time) * one + schedule.gain(time) * relation(one)
        odds = jnp.log(share / (1 - share)) + expand(2 * mean / schedule.variance(time), x) * x
        return jnp.tanh(odds / 2)

    def plugged_in(x0_hat: jax.Array, times: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(relation(x0_hat) for _ in times)

    start = stats.norm.ppf((np.arange(count) + 0.5) / count)[:, None].astype(np.float32)
    process, sampler = Process(schedule, "x0", plugged_in), SamplerConfig("ddim", steps)
    drawn = jax.jit(lambda x: sample(process, denoise, None, (1,), sampler, x_init=x))(start)
    return float(np.mean(np.asarray(drawn) > 0))


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Writes the table; returns {relation: {steps: share}}."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plug_in",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="folder of the results")
    add("--share", type=float, default=0.8, help="p")
    add("--steps", type=int, nargs="+", default=[25, 100, 1000], help="of the sampler")
    add("--count", type=int, default=20_001, help="quantiles")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise ValueError(f"share = {args.share}: must be in (0, 1)")
    schedule = make_schedule("cosine", 1000)
    found = {
        name: {
            str(steps): share_at_one(schedule, relation, args.share, steps, args.count)
            for steps in args.steps
        }
        for name, relation in RELATIONS.items()
    }
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "plug_in.json").write_text(json.dumps(found, indent=1) + "\n")
    text = table(found, args.share)
    (args.output / "plug_in.md").write_text(text)
    print(text)
    return found


def table(found: dict[str, dict[str, float]], share: float) -> str:
    """Returns the shares as Markdown."""
    steps = list(next(iter(found.values())))
    lines = [[f"r(x0), share {share:g} in the data", *(f"{n} steps" for n in steps)]]
    lines.append(["---"] * len(lines[0]))
    lines += [[name, *(f"{row[n]:.4f}" for n in steps)] for name, row in found.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()

"""The objective mean_flow of kind flow: MeanFlow (Geng et al. 2025), on any of its paths.

A network m(x_t, s, t) of mean velocities (see diffusion/flow.py) learns by

    |m - stop(u - (t - s) d m / dt)|^2,     d m / dt = v dm/dx + dm/dt      (one jvp)

with the conditional velocity u of the path in the place of E[u | x_t]: the target is linear in it.
So a relation that is affine, fitted or none at all is served alike, for x_t' is known. The v of the
derivative is the network's own, m(x_t, t, t), as in Improved MeanFlow (Geng et al. 2025, arXiv
2512.02012): with u there, dm/dx would multiply its noise. A share of the examples has s < t; the
others have s = t, which is flow matching. A relation that trains learns of these others alone.

MeanFlow divides all errors by a power of themselves. Here the velocity's are left as they are: an
error that is divided by itself is least at a likely u, not at the mean of u, which is the velocity.
The weights of steps have the mean 1 over a batch (a part of it, where gradients are accumulated).
"""

import functools

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Denoise, Keep, checked_prediction
from contextdiff_jax.diffusion.schedules import expand
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow_objective import reversed_gradient, unchanged
from contextdiff_jax.tasks.objective import Draw
from contextdiff_jax.tasks.training_times import placed, time_at, time_places
from contextdiff_jax.training.task import Metrics

_SMALL = 1e-3  # added to the squared errors that weights are made of


def draw_steps(
    config: DiffusionConfig, schedule: LinearPath, key: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Returns t in 1..T and s in 0..t, integers (count,); s is t but for a share of them."""
    keys = jax.random.split(key, 5)
    first = time_places(keys[0], count)
    second, chosen = (
        jax.random.permutation(order, time_places(places, count))
        for places, order in ((keys[1], keys[2]), (keys[3], keys[4]))
    )
    first, second = (placed(config, schedule, each) for each in (first, second))
    apart = chosen < config.flow.mean.share
    high = time_at(jnp.where(apart, jnp.maximum(first, second), first), schedule.num_steps)
    low = time_at(jnp.minimum(first, second), schedule.num_steps) - 1
    return high, jnp.where(apart, low, high)


def mean_flow_loss(
    config: DiffusionConfig, process: FlowProcess, denoise: Denoise, draw: Draw
) -> tuple[jax.Array, Metrics]:
    """Returns the loss, means per value of x0, and metrics: "error" where s = t, "mean_error" else.

    draw.ends: s. Raises ValueError where guidance is to be learned and no condition can be dropped.
    """
    single = draw.ends == draw.t  # it learns the velocity
    x_t, u, beside, metrics = _path(config, process, draw, single)
    velocity = _guided(config, process, denoise, draw, x_t, u)
    own = _velocity(process, denoise, draw, x_t, draw.keep)
    predicted, slope = with_slope(process, denoise, draw, x_t, own)
    length = process.schedule.sigma(draw.t) - process.schedule.sigma(draw.ends)
    target = velocity - jax.lax.stop_gradient(expand(length, x_t) * slope)
    error = process.error_of(predicted, x_t, target, draw.t)
    square = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    weight = jnp.where(single, 1.0, _weight(square, ~single, config.flow.mean.power))
    energy = jnp.mean(jnp.square(velocity), axis=tuple(range(1, u.ndim)))
    metrics |= {
        "error": _mean(square, single),
        "kinetic_energy": _mean(energy - square, single),
        "mean_error": _mean(square, ~single),
    }
    return jnp.mean(weight * square) + beside, metrics


def _path(
    config: DiffusionConfig, process: FlowProcess, draw: Draw, single: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | float, Metrics]:
    """Returns x_t and u as the loss sees them, what is added to it, and metrics of the relation.

    Only where s = t does a relation learn of the error.
    """
    noise, seen = draw.noise, unchanged
    beside: jax.Array | float = 0.0
    metrics: Metrics = {}
    if process.couple is not None:
        noise, kl = process.couple(draw.x0, noise)
        beside, metrics = config.flow.beta * kl, {"coupling_kl": kl}
    x_t, u, r = process.between(draw.x0, noise, draw.t)
    if process.context is not None:
        energy = jnp.mean(expand(single, u) * jnp.square(u))
        beside, seen = energy - jax.lax.stop_gradient(energy), reversed_gradient
        metrics = {"relation_rms": jnp.sqrt(jnp.mean(jnp.square(r)))}
    x_t, u = (
        jnp.where(expand(single, each), seen(each), jax.lax.stop_gradient(each))
        for each in (x_t, u)
    )
    return x_t, u, beside, metrics


def with_slope(
    process: FlowProcess, denoise: Denoise, draw: Draw, x_t: jax.Array, velocity: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the prediction for a step, and d m / dt of the mean velocity that it stands for."""
    schedule, ends = process.schedule, draw.ends.astype(jnp.float32)

    def mean(x: jax.Array, told: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
        predicted = denoise(x, jnp.stack([told, ends], axis=1), draw.keep)
        predicted = checked_prediction(predicted, x)
        return process.velocity(predicted, x, expand(time, x)), predicted

    time = schedule.sigma(draw.t)
    inputs = x_t, draw.t.astype(jnp.float32), time
    tangents = velocity, schedule.pace(draw.t), jnp.ones_like(time)
    _, slope, predicted = jax.jvp(mean, inputs, tangents, has_aux=True)
    return predicted, slope


def _guided(
    config: DiffusionConfig,
    process: FlowProcess,
    denoise: Denoise,
    draw: Draw,
    x_t: jax.Array,
    u: jax.Array,
) -> jax.Array:
    """Returns w u + (1 - w) v without the condition, where the denoiser sees one; else u."""
    scale = config.flow.mean.guidance
    if scale == 1:
        return u
    shown = jax.tree.leaves(draw.keep)
    if not shown:
        raise ValueError(
            f"diffusion.flow.mean.guidance = {scale}: must be 1, this task has no "
            "condition that can be dropped"
        )
    hidden = jax.tree.map(jnp.zeros_like, draw.keep)
    without = _velocity(process, denoise, draw, x_t, hidden)
    seen = functools.reduce(jnp.logical_or, shown)
    return jnp.where(expand(seen, u), scale * u + (1 - scale) * without, u)


def _weight(square: jax.Array, steps: jax.Array, power: float) -> jax.Array:
    """Returns the weights (B,) of steps with these squared errors; their mean over steps is 1."""
    weight = (square + _SMALL) ** -power
    return jax.lax.stop_gradient(weight / _mean(weight, steps))


def _velocity(
    process: FlowProcess, denoise: Denoise, draw: Draw, x_t: jax.Array, keep: Keep
) -> jax.Array:
    """Returns the network's velocity at x_t, without a gradient; keep: what it sees."""
    pairs = jnp.stack([draw.t, draw.t], axis=1).astype(jnp.float32)
    predicted = checked_prediction(denoise(x_t, pairs, keep), x_t)
    time = expand(process.schedule.sigma(draw.t), x_t)
    return jax.lax.stop_gradient(process.velocity(predicted, x_t, time))


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Returns the mean (B,) -> () of some of the values, 0 of none."""
    return jnp.sum(jnp.where(where, values, 0)) / jnp.maximum(jnp.sum(where), 1)

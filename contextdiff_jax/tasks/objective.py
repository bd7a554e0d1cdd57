"""The objectives of a diffusion task, for networks given as functions.

simple: the weighted squared error of x0 (eq. 6). bound: the exact bound in bits per dimension
(eq. 4), estimated from one time per example.
"""

import dataclasses

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion import bound, weights
from contextdiff_jax.diffusion.bound_step import Drawn, bound_step
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.process import Denoise, Keep, Process
from contextdiff_jax.diffusion.schedules import expand
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.training.task import Metrics

_LAST_SHARE = 40  # the last T / 40 steps, where an unbounded adapter hides its cost


@dataclasses.dataclass(frozen=True)
class Draw:
    """What an objective is computed on.

    x0 (B, ...) float32, t (B,) integers in 1..T, noise like x0, and keep, False where the denoiser
    must not see a condition, see `process`. ends: integers (B,), where steps from t end, at most t;
    None where the objective has no steps.
    """

    x0: jax.Array
    t: jax.Array
    noise: jax.Array
    keep: Keep
    ends: jax.Array | None = None


def simple_loss(
    config: DiffusionConfig,
    process: Process,
    denoise: Denoise,
    draw: Draw,
) -> tuple[jax.Array, Metrics]:
    """Returns L_simple with the config's weight, and metrics."""
    (bias,) = process.biases(draw.x0, draw.t)
    x_t = process.diffuse(draw.x0, bias, draw.t, draw.noise)
    predicted = process.predict(denoise, x_t, draw.t, draw.keep)
    error = _error(process, draw, x_t, predicted)
    weight = weights.loss_weight(config.loss_weight, process.prediction, process.schedule, draw.t)
    loss, metrics = jnp.mean(weight * error), _metrics(process, draw, bias, x_t, error)
    if config.relation_consistency and process.relation is not None:
        gap = _consistency_gap(process, draw, bias, x_t, predicted)
        return loss + config.relation_consistency * gap, metrics | {"consistency_gap": gap}
    return loss, metrics


def _consistency_gap(process: Process, draw: Draw, bias, x_t, predicted) -> jax.Array:
    """How far the bias of x0 is from that of the estimate, in units of the noise; see config."""
    x0_hat = process.x0_of(predicted, x_t, draw.t)
    x0_hat = jax.lax.stop_gradient(process.bounded(x0_hat))
    (bias_hat,) = process.biases(x0_hat, draw.t)
    variance = process.schedule.variance(draw.t)
    return jnp.mean(jnp.square(bias - bias_hat) / expand(variance, bias))


def bound_loss(
    config: DiffusionConfig,
    process: Process,
    denoise: Denoise,
    draw: Draw,
) -> tuple[jax.Array, Metrics]:
    """Returns the estimate of the bound in bits per dimension, and metrics.

    T times the mean term over uniform times, plus L_T with the bias b_T.
    """
    x0, t, last = draw.x0, draw.t, jnp.int32(process.num_steps)
    bias_t, bias_s, bias_last = process.biases(x0, t, t - 1, last)
    drawn = Drawn(Biased(x0, bias_t, bias_s), t, t - 1, draw.noise, draw.keep)
    step = bound_step(process, denoise, drawn)
    nats = process.num_steps * step.nats + bound.prior_kl(process.schedule, x0, bias_last)
    loss = jnp.mean(bound.bits_per_dim(nats, x0[0].size))
    error = _error(process, draw, step.x_t, step.predicted)
    metrics = _metrics(process, draw, bias_t, step.x_t, error)
    return loss, metrics | {"bits_per_dim": loss}


def last_steps_kl(process: Process, denoise: Denoise, x0: jax.Array, key: jax.Array) -> Metrics:
    """Returns the divergence (eq. 4, nats per example) summed over the last T / 40 steps.

    Rises when the adapter hides in x_t what the sampler must then invent at its start.
    """
    keep = jnp.ones(x0.shape[:1], bool)

    def divergence(offset: jax.Array) -> jax.Array:
        t = process.num_steps - offset
        noise = jax.random.normal(jax.random.fold_in(key, offset), x0.shape)
        drawn = Drawn(process.biased(x0, t, t - 1), t, t - 1, noise, keep)
        # Clipped as in sampling: an eps-network's x0 is arbitrarily large here.
        return jnp.mean(bound_step(process, denoise, drawn, clip=True).nats)

    last = min(-(-process.num_steps // _LAST_SHARE), process.num_steps - 1)
    return {"last_steps_kl": jnp.sum(jax.lax.map(divergence, jnp.arange(last)))}


def _error(process: Process, draw: Draw, x_t: jax.Array, predicted: jax.Array) -> jax.Array:
    """The mean squared error (B,) of what the network predicts."""
    target = process.target(draw.x0, x_t, draw.t)
    return jnp.mean(jnp.square(predicted - target), axis=_values(target))


def _values(x: jax.Array) -> tuple[int, ...]:
    """The axes of an example's values: all but the first."""
    return tuple(range(1, x.ndim))


def _metrics(process: Process, draw: Draw, bias, x_t, error) -> Metrics:
    """What shows whether the adapter cheats: its size, and the signal it adds to x_t."""
    metrics = {"error": jnp.mean(error)}
    if process.relation is None:
        return metrics
    x0, t, schedule = draw.x0, draw.t, process.schedule
    energy = jnp.sum(jnp.square(x0), axis=_values(x0)) * schedule.signal(t)
    gain = jnp.sum(x_t * x0, axis=_values(x0)) / jnp.maximum(energy, 1e-3)
    # Late times have almost no signal: the ratio there is noise. The first half tells.
    early = t <= schedule.num_steps // 2
    return metrics | {
        "relation_rms": jnp.sqrt(jnp.mean(jnp.square(bias / expand(schedule.gain(t), x0)))),
        "signal_gain": jnp.sum(jnp.where(early, gain, 0)) / jnp.maximum(jnp.sum(early), 1),
    }

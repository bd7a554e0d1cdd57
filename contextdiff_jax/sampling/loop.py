"""The sampler loop: a whole run is one `lax.scan`, to be compiled as one program.

A step at t: the denoiser's guided estimate x0_hat, its threshold, the bias at t and at the next
time s from ONE call of the relation on x0_hat with the true condition, then the step to s.

x_T is drawn from N(0, I): its bias would need an estimate of x0 from nothing. k_T is of the size of
the signal left at T (1e-4 for 1000 cosine steps, 0.06 for Stable Diffusion's), ignored as well.
"""

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.predictions import PredictionKind, check_kind
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.diffusion.solvers import (
    midpoint_estimate,
    solver_coefficients,
    solver_step,
)
from contextdiff_jax.diffusion.steps import step
from contextdiff_jax.sampling.bias import Relation, biases
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import Denoise, guided_x0
from contextdiff_jax.sampling.noise import step_noise


def sample(
    schedule: Schedule,
    denoise: Denoise,
    relation: Relation | None,
    keys: jax.Array | None,
    shape: tuple[int, ...],
    sampler: SamplerConfig,
    prediction: PredictionKind,
    *,
    x_init: jax.Array | None = None,
) -> jax.Array:
    """Draws samples, float32 (B, *shape). Pure: jit a function that takes parameters and calls it.

    denoise(x, t, keep) -> prediction like x: t is float32 (B,) in 1..T; keep (B,) is False where
        the condition must be hidden. Under guidance the batch is doubled, see `guidance`.
    relation(x0_hat, times) -> r for each of the times, float32 (B,) in 1..T; None for no adapter.
    keys: (B,) from `sample_keys`; may be None where x_init is given and the sampler adds no noise.
    shape: of one sample, e.g. (H, W, C).
    prediction: what the denoiser predicts.
    x_init: (B, *shape), the state at the first time, e.g. from `inversion.invert`; drawn if None.

    Raises ValueError for a sampler, prediction kind or shape that does not fit.
    """
    sampler.validate("sampler")
    check_kind(prediction)
    eta = 1.0 if sampler.name == "ddpm" else sampler.eta
    x = _initial_state(keys, shape, x_init, sampler.name, eta)
    timesteps = sampler.timesteps(schedule)
    times = (jnp.arange(1, len(timesteps)), jnp.asarray(timesteps[:-1]), jnp.asarray(timesteps[1:]))

    def estimate(x, t):
        return guided_x0(schedule, denoise, x, t, sampler, prediction)

    def single_step(x, inputs):
        number, t, s = inputs
        x0_hat = estimate(x, t)
        bias_t, bias_s = biases(schedule, relation, x0_hat, (t, s))
        noise = step_noise(keys, number, shape) if eta > 0 else None
        return step(schedule, x, x0_hat, bias_t, bias_s, t, s, eta=eta, noise=noise), None

    def multistep(carry, inputs):
        x, previous = carry
        (_, t, s), coefficients = inputs
        x0_hat = estimate(x, t)
        midpoint = midpoint_estimate(coefficients, x0_hat, previous)
        # Extrapolation leaves the range that the threshold keeps, and that the adapter knows: its
        # bias alone is of the clipped one, see `solvers`.
        seen = midpoint if sampler.threshold == "none" else jnp.clip(midpoint, -1.0, 1.0)
        bias_t, bias_s = biases(schedule, relation, seen, (t, s))
        return (solver_step(coefficients, x, midpoint, bias_t, bias_s), x0_hat), None

    if sampler.name == "dpm_solver++":
        inputs = (times, solver_coefficients(schedule, timesteps))
        return jax.lax.scan(multistep, (x, jnp.zeros_like(x)), inputs)[0][0]
    return jax.lax.scan(single_step, x, times)[0]


def _initial_state(keys, shape, x_init, name: str, eta: float) -> jax.Array:
    if keys is None and (x_init is None or eta > 0):
        raise ValueError(f"keys = None: sampler {name} needs keys to draw noise")
    if x_init is None:
        return step_noise(keys, 0, shape)
    if x_init.shape[1:] != tuple(shape):
        raise ValueError(f"x_init of shape {x_init.shape}: must be (B, *{tuple(shape)})")
    return x_init.astype(jnp.float32)

"""The objective of kind flow, for networks given as functions (docs/flow.md).

The denoiser learns the velocity by the squared error L = E|v - u|^2. An affine relation learns by
the kinetic energy of the flow that its path makes,

    E|v*|^2 = E|u|^2 - L,   v* = E[u | x_t]

the least of which is the squared Wasserstein distance from noise to data (Benamou and Brenier
2000): so its gradient of L has the other sign. By L alone it would learn to remove the signal.
"""

import dataclasses

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.process import Denoise
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.objective import Draw
from contextdiff_jax.training.task import Metrics

QUARTERS = (25, 50, 75, 100)  # of T, in percent: where the diagnostics look


def flow_loss(
    config: DiffusionConfig,
    process: FlowProcess,
    denoise: Denoise,
    draw: Draw,
) -> tuple[jax.Array, Metrics]:
    """Returns the loss, means per value of x0, and metrics: L ("error") and E|u|^2 - L."""
    if process.couple is not None:
        return _coupled_loss(config, process, denoise, draw)
    x_t, u, r = process.between(draw.x0, draw.noise, draw.t)
    # Seen from the relation, the error has the other sign; the denoiser's gradient is its own.
    seen = reversed_gradient if process.context is not None else unchanged
    error = _error(process, denoise, draw, seen(x_t), seen(u))
    energy = jnp.mean(jnp.square(u))
    metrics = {"error": error, "kinetic_energy": energy - error}
    if process.context is None:
        return error, metrics
    metrics["relation_rms"] = jnp.sqrt(jnp.mean(jnp.square(r)))
    return error + energy - jax.lax.stop_gradient(energy), metrics


def _coupled_loss(config, process, denoise, draw) -> tuple[jax.Array, Metrics]:
    z, kl = process.couple(draw.x0, draw.noise)
    x_t, u, _ = process.between(draw.x0, z, draw.t)
    error = _error(process, denoise, draw, x_t, u)
    energy = jnp.mean(jnp.square(u))
    metrics = {"error": error, "kinetic_energy": energy - error, "coupling_kl": kl}
    return error + config.flow.beta * kl, metrics


def _error(process: FlowProcess, denoise: Denoise, draw: Draw, x_t, u) -> jax.Array:
    predicted = process.predict(denoise, x_t, draw.t, draw.keep)
    return jnp.mean(jnp.square(process.error_of(predicted, x_t, u, draw.t)))


def reversed_gradient(x: jax.Array) -> jax.Array:
    """Returns x, whose gradient has the other sign."""
    return 2 * jax.lax.stop_gradient(x) - x


def unchanged(x: jax.Array) -> jax.Array:
    """Returns x, whose gradient stays."""
    return x


def flow_diagnosis(
    config: DiffusionConfig, process: FlowProcess, denoise: Denoise, draw: Draw
) -> Metrics:
    """Returns the velocity's error at four times, whatever draw.t; the last is of noise alone."""

    def at(t: jax.Array) -> jax.Array:
        here = dataclasses.replace(draw, t=jnp.full(draw.t.shape, t))
        return flow_loss(config, process, denoise, here)[1]["error"]

    times = jnp.array([max(1, process.num_steps * share // 100) for share in QUARTERS])
    errors = jax.lax.map(at, times)
    return {f"error_at_{share}": errors[place] for place, share in enumerate(QUARTERS)}

"""Any plain process in the coordinates of the linear path, where its flow is an ordinary ODE.

With w = signal + sigma, z = x / w and tau = sigma / w, a state x_t = signal x0 + sigma eps is
z = (1 - tau) x0 + tau eps, and the deterministic flow is dz / dtau = (z - x0_hat) / tau. On the
linear path w = 1 and tau = t, and this is the velocity. On a noise schedule Euler's method here is
DDIM. The steppers Euler, Heun and AB2 are the textbook's methods for this ODE.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process


class Scale(NamedTuple):
    """tau and w of times, float32 (n,), or () of one step."""

    tau: jax.Array
    width: jax.Array


def scale_of(process: Process, times: np.ndarray) -> Scale:
    """Returns the coordinates of integer times (n,), computed in float64."""
    signal, sigma = process.schedule.levels(times)
    width = signal + sigma
    return Scale(*(jnp.asarray(a, jnp.float32) for a in (sigma / width, width)))


def velocity(x: jax.Array, x0_hat: jax.Array, at: Scale) -> jax.Array:
    """Returns dz / dtau at the state x (B, ...) of a time above 0, for an estimate of x0."""
    return (x / at.width - x0_hat) / at.tau


def moved(x: jax.Array, velocity: jax.Array, at: Scale, to: Scale) -> jax.Array:
    """Returns the state at `to` along a straight line from x at `at`."""
    return to.width * (x / at.width + (to.tau - at.tau) * velocity)

"""Context-aware DPM-Solver++(2M), see `diffusion.solvers`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data
from contextdiff_jax.diffusion.solvers import midpoint_estimate, solver_coefficients, solver_step


@dataclasses.dataclass(frozen=True)
class DPMSolver:
    """The second-order multistep solver; it carries the estimate of the step before.

    timesteps: int32 (n + 1,), falling. alike: int (n + 1,), see `guidance.steps_alike`; with 0 a
    step is of first order. limit: keep what the adapter sees within the bounds of x0.
    """

    process: Process
    timesteps: np.ndarray
    alike: np.ndarray
    limit: bool = False

    adds_noise = False

    @property
    def inputs(self) -> tuple[jax.Array, jax.Array, Any]:
        """What each step reads beside the state: its times t and s, and its coefficients."""
        times = jnp.asarray(self.timesteps[:-1]), jnp.asarray(self.timesteps[1:])
        found = solver_coefficients(self.process.schedule, self.timesteps)
        slope = jnp.where(self.alike[:-1] == 0, 0, found.slope)
        return *times, dataclasses.replace(found, slope=slope)

    def init(self, x: jax.Array) -> jax.Array:
        """Returns an estimate before the first, which is not read."""
        return jnp.zeros_like(x)

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: jax.Array,
        inputs: tuple[jax.Array, jax.Array, Any],
        noise: None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns x at s, and the estimate that the next step extrapolates from."""
        t, s, coefficients = inputs
        midpoint = midpoint_estimate(coefficients, x0_hat, carried)
        # Extrapolation leaves the range that the threshold keeps, and that the adapter knows: its
        # bias alone is of the clipped one, see `solvers`.
        seen = self.process.bounded(midpoint) if self.limit else midpoint
        bias_t, bias_s = self.process.biases(seen, t, s)
        return solver_step(coefficients, x, midpoint, bias_t, bias_s), x0_hat

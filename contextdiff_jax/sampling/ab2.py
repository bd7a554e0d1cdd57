"""The two-step method of Adams and Bashforth for the flow, see `straightened`.

One network call a step, of second order: the velocity of the step before is extrapolated, with
steps of any lengths. The first step is Euler's, and so is one where guidance begins or ends.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data
from contextdiff_jax.sampling.straightened import Scale, moved, scale_of, velocity


@dataclasses.dataclass(frozen=True)
class AB2:
    """timesteps: int32 (n + 1,), falling. alike: int (n + 1,), see `guidance.steps_alike`."""

    process: Process
    timesteps: np.ndarray
    alike: np.ndarray

    adds_noise = False

    @property
    def inputs(self) -> tuple[Scale, Scale, jax.Array]:
        """What each step reads beside the state: where it begins and ends, and its slope.

        The slope is h / (2 h_before), 0 where there is no step before to extrapolate from.
        """
        at, to = (scale_of(self.process, t) for t in (self.timesteps[:-1], self.timesteps[1:]))
        lengths = to.tau - at.tau
        slope = jnp.concatenate([jnp.zeros(1), lengths[1:] / (2 * lengths[:-1])])
        return at, to, jnp.where(self.alike[:-1] == 0, 0, slope)

    def init(self, x: jax.Array) -> jax.Array:
        """Returns a velocity before the first, which is not read."""
        return jnp.zeros_like(x)

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: jax.Array,
        inputs: tuple[Scale, Scale, jax.Array],
        noise: None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns x at the step's end, and the velocity that the next step extrapolates from."""
        at, to, slope = inputs
        now = velocity(x, x0_hat, at)
        return moved(x, now + slope * (now - carried), at, to), now

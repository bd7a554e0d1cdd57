"""Heun's method for the flow, see `straightened`: two network calls a step, of second order.

A step goes to its end by Euler, and is then taken anew with the mean of the velocities at its two
ends. At t = 0 no network can be called, so the last step that ends there is Euler's: n steps cost
2 n - 1 calls, or 2 n where they end above t = 0. A step within which guidance begins or ends is
Euler's, too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data
from contextdiff_jax.sampling.straightened import Scale, moved, scale_of, velocity


@dataclasses.dataclass(frozen=True)
class Heun:
    """times: int32 (n + 1,), falling, of the n steps. alike: int (n + 1,), of these times, see
    `guidance.steps_alike`.

    timesteps: those at which the network is called, and the last one: all inner times twice.
    """

    process: Process
    times: np.ndarray
    alike: np.ndarray

    adds_noise = False

    @property
    def timesteps(self) -> np.ndarray:
        """The times of the calls, and the last one."""
        return np.concatenate([self._at, self.times[-1:]])

    @property
    def _again(self) -> np.ndarray:
        """Which calls take a step anew."""
        last = int(self.times[-1] == 0)
        return np.array([False, True] * (len(self.times) - 1 - last) + [False] * last)

    @property
    def _at(self) -> np.ndarray:
        """The time of each call: a step's beginning, and its end where it is taken anew."""
        step = np.cumsum(~self._again) - 1
        return self.times[step + self._again]

    @property
    def inputs(self) -> tuple[Scale, Scale, Scale, jax.Array, jax.Array]:
        """What each call reads beside the state.

        Its place, where its step begins and ends, whether it takes the step anew, and the share
        of its own velocity there.
        """
        step = np.cumsum(~self._again) - 1
        places = self._at, self.times[step], self.times[step + 1]
        share = np.where(self.alike[step + 1] == 0, 0.0, 0.5).astype(np.float32)
        scales = (scale_of(self.process, t) for t in places)
        return *scales, jnp.asarray(self._again), jnp.asarray(share)

    def init(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where a step began, and its velocity there; the first call reads neither."""
        return x, jnp.zeros_like(x)

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: tuple[jax.Array, jax.Array],
        inputs: tuple[Scale, Scale, Scale, jax.Array, jax.Array],
        noise: None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns x at the step's end, and what a call that takes it anew reads."""
        (start, first), (at, begin, end, again, share) = carried, inputs
        now = velocity(x, x0_hat, at)
        origin = jnp.where(again, start, x)
        mean = jnp.where(again, first + share * (now - first), now)
        return moved(origin, mean, begin, end), (x, now)

"""Euler's method for the flow, see `straightened`: one network call a step, of first order."""

import dataclasses

import jax
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data
from contextdiff_jax.sampling.straightened import Scale, moved, scale_of, velocity


@dataclasses.dataclass(frozen=True)
class Euler:
    """timesteps: int32 (n + 1,), falling."""

    process: Process
    timesteps: np.ndarray

    adds_noise = False

    @property
    def inputs(self) -> tuple[Scale, Scale]:
        """What each step reads beside the state: where it begins and ends."""
        return tuple(scale_of(self.process, t) for t in (self.timesteps[:-1], self.timesteps[1:]))

    def init(self, x: jax.Array) -> tuple:
        """Nothing is carried from step to step beside x."""
        return ()

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: tuple,
        inputs: tuple[Scale, Scale],
        noise: None,
    ) -> tuple[jax.Array, tuple]:
        """Returns x at the step's end, and nothing to carry."""
        at, to = inputs
        return moved(x, velocity(x, x0_hat, at), at, to), carried

"""Context-aware DDIM (ContextDiff, eq. 11), with any share of the posterior's noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data


@dataclasses.dataclass(frozen=True)
class DDIM:
    """The general step from time to time; eta 0 is deterministic, eta 1 is DDPM (eq. 7).

    timesteps: int32 (n + 1,), falling. eta: in 0..1.
    """

    process: Process
    timesteps: np.ndarray
    eta: float = 0.0

    @property
    def adds_noise(self) -> bool:
        """Whether `update` reads its noise."""
        return self.eta > 0

    @property
    def inputs(self) -> tuple[jax.Array, jax.Array]:
        """What each step reads beside the state: its times t and s, (n,) each."""
        return jnp.asarray(self.timesteps[:-1]), jnp.asarray(self.timesteps[1:])

    def init(self, x: jax.Array) -> tuple:
        """Nothing is carried from step to step beside x."""
        return ()

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: tuple,
        inputs: tuple[jax.Array, jax.Array],
        noise: jax.Array | None,
    ) -> tuple[jax.Array, tuple]:
        """Returns x at s, and nothing to carry."""
        t, s = inputs
        return self.process.step(x, x0_hat, t, s, eta=self.eta, noise=noise), carried

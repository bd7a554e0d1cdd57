"""Inpainting: after every step, what is to stay is put back on its own noisy path."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.sampling.control import Free


@dataclasses.dataclass(frozen=True, eq=False)
class Held(Free):
    """Holds a known x0 where `free` is False. Of plain diffusion: the path has no bias.

    x0 (B, ...): what is known. noise (B, ...): N(0, I), the same at all times. free: bool, of a
    shape that broadcasts against x0. final: the run's last time, at which x0 itself stands.
    """

    process: Process
    x0: jax.Array
    noise: jax.Array
    free: jax.Array
    final: int = 0

    def after(
        self, x: jax.Array, number: jax.Array, s: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the state with what is known at time s put back."""
        path = self.process.diffuse(self.x0, 0.0, s, self.noise)
        return jnp.where(self.free, x, jnp.where(s > self.final, path, self.x0)), state

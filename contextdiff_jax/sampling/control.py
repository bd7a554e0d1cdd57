"""Control over a sampling run: what may see and change it from step to step, with own state.

Attention fusion stores and replaces attention, inpainting holds what is known: both need arrays
that ride along through the scan.
"""

from typing import Any, Protocol

import jax

from contextdiff_jax.diffusion.process import Denoise


class Control(Protocol):
    """Rides along a sampling run. Its state is any tree of arrays of fixed shapes."""

    def init(self, x: jax.Array) -> Any:
        """Returns the state at the first time; x (B, ...) is the run's first state."""

    def predict(
        self,
        denoise: Denoise,
        x: jax.Array,
        t: jax.Array,
        keep: jax.Array,
        state: Any,
    ) -> tuple[jax.Array, Any]:
        """Returns the denoiser's prediction, perhaps changed, and the state.

        The arguments are those of a `Denoise`: under guidance the batch is doubled.
        """

    def after(
        self, x: jax.Array, number: jax.Array, s: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the state x of the run at time s, perhaps changed, and the control's.

        number: of the step, from 1.
        """


class Free:
    """No control: nothing rides along, nothing is changed."""

    def init(self, x: jax.Array) -> tuple:
        return ()

    def predict(self, denoise, x, t, keep, state):
        return denoise(x, t, keep), state

    def after(self, x, number, s, state):
        return x, state

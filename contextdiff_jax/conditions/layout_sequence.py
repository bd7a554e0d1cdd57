"""A layout as latent diffusion has it: a sequence of tokens; no layout is that of no object."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Batch, Given
from contextdiff_jax.conditions.layout import Layout


@dataclasses.dataclass(frozen=True)
class LayoutSequence(Layout):
    """Boxes of `classes`; config.tokens must be "ldm", and config.map False.

    The tokens of a layout without objects are the input "null" (B, L, D): the network has no null
    token of its own, and published ones were never trained without a layout.
    """

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the tokens of the layouts, those of no object, and what the adapter reads."""
        given = super().encode(params, frozen, batch)
        empty = jnp.asarray(self.sequence(()))[None]
        null = self._tokens.apply({"params": params["denoiser"]["tokens"]}, empty)
        inputs = {"null": jnp.broadcast_to(null, given.tokens.shape)}
        return dataclasses.replace(given, inputs=inputs)

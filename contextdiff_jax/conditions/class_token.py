"""The class of a picture as latent diffusion has it: one token, and one more row for no class."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.class_label import ClassLabel, Embedding
from contextdiff_jax.conditions.condition import Batch, Given


@dataclasses.dataclass(frozen=True)
class ClassToken(ClassLabel):
    """One of `classes`, by its name; "" is no class, the table's last row (Rombach et al. 2022).

    The row of no class is the input "null" (B, 1, D): the network has no null token of its own.
    """

    @property
    def _embedding(self) -> Embedding:
        return Embedding(len(self.classes) + 1, self.config.width)

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns one token for the denoiser, the one of no class, and those for the adapter."""
        given = super().encode(params, frozen, batch)
        last = jnp.full(batch["label"].shape, len(self.classes), jnp.int32)
        null: jax.Array = self._embedding.apply({"params": params["denoiser"]}, last)[:, None]
        return dataclasses.replace(given, inputs={"null": null})

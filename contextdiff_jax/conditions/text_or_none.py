"""Text as Stable Diffusion reads it, or none: a missing prompt is one as the encoded "" is."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Given, Shapes
from contextdiff_jax.conditions.whole_text import WholeText


@dataclasses.dataclass(frozen=True)
class TextOrNone(WholeText):
    """A prompt; "" is none, and training may take one away by the array "present" of a batch.

    Where there is none the denoiser attends to the tokens of `negative`, the adapter to nothing.
    """

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays of WholeText, and "present" (B,) bool."""
        present = np.array([bool(value.strip()) for value in values])
        return super().collate(values, warn) | {"present": present}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        present = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
        return super().shapes(batch_size) | {"present": present}

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns what WholeText does; see `WholeText.encode`."""
        return dataclasses.replace(super().encode(params, frozen, batch), present=batch["present"])

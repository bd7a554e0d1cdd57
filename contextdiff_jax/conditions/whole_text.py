"""Text as Stable Diffusion reads it: every token, padding too, and a prompt for no condition."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.encoders.frozen import TextEncoder


@dataclasses.dataclass(frozen=True)
class WholeText(Condition):
    """A prompt; "" is one as well.

    text: the encoder; its parameters are passed in (`frozen`), under its identity.
    clip_text: the adapter's, perhaps the same; None without one. The adapter reads no padding.
    negative: the prompt that guidance leads away from, of all pictures. Its tokens are the input
      "null" (B, L, D): the network was trained with the encoded "" where it has no condition.
    """

    name: ClassVar[str] = "text"

    text: TextEncoder
    negative: str = ""
    clip_text: TextEncoder | None = None

    def _parts(self) -> dict[str, TextEncoder]:
        """What encodes the arrays of a batch, by their prefix."""
        parts = {"text": self.text, "null": self.text}
        return parts if self._shared else parts | {"clip": self.clip_text}

    @property
    def _shared(self) -> bool:
        """Whether the adapter, if there is one, reads the denoiser's encoder."""
        return self.clip_text is None or self.clip_text is self.text

    def encoders(self) -> dict[str, TextEncoder]:
        """Returns the encoders."""
        return {"text": self.text} if self._shared else self._both()

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve."""
        found = {"text": self.text} if self.clip_text is None else self._both()
        return {name: encoder.identity for name, encoder in found.items()}

    def _both(self) -> dict[str, TextEncoder]:
        return {"clip_text": self.clip_text, "text": self.text}

    def without_adapter(self) -> "WholeText":
        """Returns the condition for the denoiser alone."""
        return dataclasses.replace(self, clip_text=None)

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the ids of prompts and of the negative one; warn: of words that are cut off."""
        arrays = {}
        for prefix, encoder in self._parts().items():
            texts = [self.negative] if prefix == "null" else values
            ids, mask = encoder.tokenizer(texts, warn=warn)
            repeats = len(values) if prefix == "null" else 1
            arrays[f"{prefix}_ids"] = np.repeat(ids, repeats, axis=0)
            arrays[f"{prefix}_mask"] = np.repeat(mask, repeats, axis=0)
        return arrays

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        found = {}
        for prefix, encoder in self._parts().items():
            rows = (batch_size, encoder.max_length)
            found[f"{prefix}_ids"] = jax.ShapeDtypeStruct(rows, jnp.int32)
            found[f"{prefix}_mask"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
        return found

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the tokens of the prompts, and of the negative one as the input "null"."""

        def arrays(prefix: str) -> tuple[jax.Array, jax.Array]:
            return batch[f"{prefix}_ids"], batch[f"{prefix}_mask"]

        weights = frozen[self.text.identity]
        tokens = self.text.encode_whole(weights, *arrays("text"))
        # All rows hold the one negative prompt: it is encoded once.
        null = self.text.encode_whole(weights, *(array[:1] for array in arrays("null")))
        null = jnp.broadcast_to(null, tokens.shape)
        everything = jnp.ones(tokens.shape[:2], bool)
        adapter: tuple[jax.Array | None, jax.Array | None] = (None, None)
        if self.clip_text is self.text:
            adapter = tokens, batch["text_mask"]
        elif self.clip_text is not None:
            adapter = self.clip_text.encode(frozen[self.clip_text.identity], *arrays("clip"))
        return Given(everything[:, 0], tokens, everything, *adapter, inputs={"null": null})

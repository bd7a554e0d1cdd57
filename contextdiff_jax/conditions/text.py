"""Text: tokens of frozen encoders, computed in the loop or read where they were stored."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.encoders.frozen import StoredTokens, TextEncoder


@dataclasses.dataclass(frozen=True)
class Text(Condition):
    """A prompt; "" is no condition.

    text: the denoiser's encoder. clip_text: the adapter's, None without one. Their parameters are
    passed in (`frozen`), under the encoders' identities.
    """

    name: ClassVar[str] = "text"

    text: TextEncoder | StoredTokens
    clip_text: TextEncoder | StoredTokens | None = None

    def _parts(self) -> dict[str, TextEncoder | StoredTokens]:
        """The encoders that differ, by the prefix of their arrays in a batch."""
        parts = {"text": self.text}
        if self.clip_text is not None and self.clip_text is not self.text:
            parts["clip"] = self.clip_text
        return parts

    def encoders(self) -> dict[str, TextEncoder]:
        """Returns the loaded encoders."""
        names = {"text": "text", "clip": "clip_text"}
        loaded = {names[k]: e for k, e in self._parts().items() if isinstance(e, TextEncoder)}
        return dict(sorted(loaded.items()))

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve."""
        found = {"text": self.text.identity}
        return found if self.clip_text is None else found | {"clip_text": self.clip_text.identity}

    def without_adapter(self) -> "Text":
        """Returns the condition for the denoiser alone."""
        return Text(self.text)

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns ids, masks and `present` of prompts; warn: of words that are cut off.

        The encoders must be loaded: stored tokens come from where they are stored.
        """
        arrays: dict[str, np.ndarray] = {}
        for prefix, encoder in self._parts().items():
            ids, mask = encoder.tokenizer(values, warn=warn)
            arrays |= {f"{prefix}_ids": ids, f"{prefix}_mask": mask}
        arrays["present"] = np.array([bool(prompt.strip()) for prompt in values])
        return arrays

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of what `encode` reads of a batch, as prepared for training."""
        shapes = {"present": jax.ShapeDtypeStruct((batch_size,), jnp.bool_)}
        for prefix, encoder in self._parts().items():
            rows = (batch_size, encoder.max_length)
            shapes[f"{prefix}_mask"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
            if isinstance(encoder, StoredTokens):
                tokens = jax.ShapeDtypeStruct((*rows, encoder.width), jnp.bfloat16)
                shapes[f"{prefix}_tokens"] = tokens
            else:
                shapes[f"{prefix}_ids"] = jax.ShapeDtypeStruct(rows, jnp.int32)
        return shapes

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Encodes the arrays of `collate`, or takes stored tokens as they are.

        Those are NAME_tokens (B, L, D), zero where NAME_mask (B, L) is False, of any float dtype;
        NAME is "text" and, where the adapter's encoder is another one, "clip".
        """
        encoded = {
            prefix: _encode(encoder, frozen, batch, prefix)
            for prefix, encoder in self._parts().items()
        }
        tokens, mask = encoded["text"]
        adapter = (None, None) if self.clip_text is None else encoded.get("clip", encoded["text"])
        return Given(batch["present"], tokens, mask, *adapter)


def _encode(
    encoder: TextEncoder | StoredTokens, frozen: Mapping[str, Any], batch: Batch, prefix: str
) -> tuple[jax.Array, jax.Array]:
    mask = batch[f"{prefix}_mask"]
    if isinstance(encoder, StoredTokens):
        return batch[f"{prefix}_tokens"].astype(jnp.float32), mask
    return encoder.encode(frozen[encoder.identity], batch[f"{prefix}_ids"], mask)

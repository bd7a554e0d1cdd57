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
    negative: the prompt that guidance leads away from, of all pictures. Its tokens are the input
      "null" (B, L, D): the network was trained with the encoded "" where it has no condition.
    """

    name: ClassVar[str] = "text"

    text: TextEncoder
    negative: str = ""

    def encoders(self) -> dict[str, TextEncoder]:
        """Returns the encoder."""
        return {"text": self.text}

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabulary serve."""
        return {"text": self.text.identity}

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the ids of prompts and of the negative one; warn: of words that are cut off."""
        ids, mask = self.text.tokenizer(values, warn=warn)
        null_ids, null_mask = self.text.tokenizer([self.negative], warn=warn)
        each = {"null_ids": null_ids, "null_mask": null_mask}
        repeated = {name: np.repeat(array, len(values), axis=0) for name, array in each.items()}
        return {"text_ids": ids, "text_mask": mask, **repeated}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        rows = (batch_size, self.text.max_length)
        found = {}
        for prefix in ("text", "null"):
            found[f"{prefix}_ids"] = jax.ShapeDtypeStruct(rows, jnp.int32)
            found[f"{prefix}_mask"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
        return found

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the tokens of the prompts, and of the negative one as the input "null"."""
        tokens, null = (
            self.text.encode_whole(
                frozen[self.text.identity], batch[f"{prefix}_ids"], batch[f"{prefix}_mask"]
            )
            for prefix in ("text", "null")
        )
        everything = jnp.ones(tokens.shape[:2], bool)
        return Given(everything[:, 0], tokens, everything, inputs={"null": null})

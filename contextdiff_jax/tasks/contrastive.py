"""Contrastive language-image training (Radford et al., 2021): aligned encoders for a new domain."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.preprocess import clip_preprocess
from contextdiff_jax.encoders.tokenizers import Tokenizer
from contextdiff_jax.tasks.diffusion import from_uint8
from contextdiff_jax.training.task import Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class ContrastiveTask:
    """CLIP from scratch on (image, caption) pairs; the symmetric cross-entropy over the batch."""

    clip: CLIP
    tokenizer: Tokenizer
    resolution: int
    frozen: Any = dataclasses.field(default_factory=dict)

    def tokenize(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the arrays `loss` reads of captions."""
        ids, _ = self.tokenizer(captions)
        return {"text_ids": ids}

    def token_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the arrays of `tokenize`."""
        shape = (batch_size, self.tokenizer.max_length)
        return {"text_ids": jax.ShapeDtypeStruct(shape, jnp.int32)}

    def boxed_frozen(self) -> Any:
        """Nothing is frozen."""
        return {}

    def init(self, key: jax.Array) -> Params:
        """Returns {"clip": ...}, boxed with logical axis names."""
        side = self.clip.config.image_size
        ids = jnp.zeros((1, self.clip.config.max_length), jnp.int32)
        return {"clip": self.clip.init(key, ids, jnp.zeros((1, side, side, 3)))["params"]}

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Mean of image-to-text and text-to-image cross-entropy; captions that recur count once.

        Pairs with equal captions are not negatives of each other: small domains repeat captions.
        """
        pixels = clip_preprocess(from_uint8(batch["image"]), self.clip.config.image_size)
        logits = self.clip.apply({"params": params["clip"]}, batch["text_ids"], pixels)
        same = jnp.all(batch["text_ids"][:, None] == batch["text_ids"][None], axis=-1)
        match = same / jnp.sum(same, axis=1, keepdims=True)
        by_image = -jnp.sum(match * jax.nn.log_softmax(logits, axis=1), axis=1)
        by_text = -jnp.sum(match * jax.nn.log_softmax(logits, axis=0), axis=0)
        loss = jnp.mean(by_image + by_text) / 2
        right = jnp.take_along_axis(same, jnp.argmax(logits, axis=1)[:, None], axis=1)
        return loss, {"accuracy": jnp.mean(right)}

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Nothing beyond the loss."""
        return {}

    def preview(self, params: Params, frozen: Any, seed: int) -> None:
        """Encoders draw nothing."""
        return

"""From captions and images to what the denoiser and the adapter attend to, by frozen encoders."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.frozen import TextEncoder, clip_image_tokens


@dataclasses.dataclass(frozen=True)
class Condition:
    """A batch of encoded conditions.

    text (B, L, D), text_mask (B, L): what the denoiser reads. clip_text (B, L', D'),
    clip_mask (B, L'): what the adapter reads; absent without an adapter. present (B,) bool:
    False where there is no condition at all (an empty prompt).
    """

    text: jax.Array
    text_mask: jax.Array
    present: jax.Array
    clip_text: jax.Array | None = None
    clip_mask: jax.Array | None = None


jax.tree_util.register_dataclass(Condition)


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """CLIP's vision tower with its parameters (numpy, as loaded) and their identity."""

    module: CLIP
    params: Any
    identity: str

    @property
    def width(self) -> int:
        """Width of the image tokens."""
        return self.module.config.vision_width


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The frozen encoders of one diffusion run.

    text: the denoiser's text encoder. clip_text, clip_image: the adapter's; None without one.
    The parameters are passed in (`frozen`), under the names of these fields.
    """

    text: TextEncoder
    clip_text: TextEncoder | None = None
    clip_image: ImageEncoder | None = None

    def parameters(self) -> dict[str, Any]:
        """Returns the encoders' parameters, each set once, keyed by the weights' identity."""
        encoders = [e for e in (self.text, self.clip_text, self.clip_image) if e is not None]
        return {encoder.identity: encoder.params for encoder in encoders}

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve, for checkpoints to record."""
        found = {"text": self.text.identity}
        if self.clip_text is not None and self.clip_image is not None:
            found |= {"clip_text": self.clip_text.identity, "clip_image": self.clip_image.identity}
        return found

    def tokenize(self, prompts: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays `encode` reads, for prompts (of any number; "" is no condition)."""
        ids, mask = self.text.tokenizer(prompts, warn=warn)
        arrays = {"text_ids": ids, "text_mask": mask}
        if self.clip_text is not None:
            same = self.clip_text is self.text
            clip_ids, clip_mask = (ids, mask) if same else self.clip_text.tokenizer(prompts)
            arrays |= {"clip_ids": clip_ids, "clip_mask": clip_mask}
        arrays["present"] = np.array([bool(prompt.strip()) for prompt in prompts])
        return arrays

    def encode(self, frozen: Any, batch: Mapping[str, jax.Array]) -> Condition:
        """Encodes the arrays of `tokenize`. Pure; no gradient reaches the encoders."""
        text, mask = self._encode(self.text, frozen, batch["text_ids"], batch["text_mask"])
        present = batch["present"]
        if self.clip_text is None:
            return Condition(text, mask, present)
        if self.clip_text is self.text:
            return Condition(text, mask, present, text, mask)
        clip = self._encode(self.clip_text, frozen, batch["clip_ids"], batch["clip_mask"])
        return Condition(text, mask, present, *clip)

    @staticmethod
    def _encode(encoder: TextEncoder, frozen: Any, ids: jax.Array, mask: jax.Array) -> Any:
        return encoder.encode(frozen[encoder.identity], ids, mask)

    def image_tokens(self, frozen: Any, images: jax.Array) -> jax.Array:
        """Returns CLIP's tokens (B, 1 + g*g, D) of images in [-1, 1], differentiable in them."""
        encoder = self.clip_image
        return clip_image_tokens(encoder.module, frozen[encoder.identity], images)


def hidden(condition: Condition, visible: jax.Array) -> Condition:
    """Returns the condition with examples where `visible` (B,) is False turned to no condition."""
    return dataclasses.replace(condition, present=jnp.logical_and(condition.present, visible))

"""From captions and images to what the denoiser and the adapter attend to, by frozen encoders."""

import dataclasses
import functools
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

    def boxed(self) -> Any:
        """Returns the shapes of the parameters, boxed with their logical axis names."""
        side = self.module.config.image_size
        init = functools.partial(self.module.init, method=CLIP.encode_image)
        return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Stands for a text encoder that is not loaded: its tokens come with the batch.

    identity, width, max_length: as the TextEncoder's.
    """

    identity: str
    width: int
    max_length: int


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The frozen encoders of one diffusion run.

    text: the denoiser's text encoder. clip_text, clip_image: the adapter's; None without one.
    The parameters are passed in (`frozen`), under the encoders' identities.
    """

    text: TextEncoder | Precomputed
    clip_text: TextEncoder | Precomputed | None = None
    clip_image: ImageEncoder | None = None

    def parameters(self) -> dict[str, Any]:
        """Returns the loaded encoders' parameters, each set once, keyed by their identity."""
        return {encoder.identity: encoder.params for encoder in self._loaded()}

    def boxed_parameters(self) -> dict[str, Any]:
        """Returns the shapes of `parameters()`, boxed with their logical axis names."""
        return {encoder.identity: encoder.boxed() for encoder in self._loaded()}

    def _loaded(self) -> list[TextEncoder | ImageEncoder]:
        encoders = (self.text, self.clip_text, self.clip_image)
        return [e for e in encoders if isinstance(e, (TextEncoder, ImageEncoder))]

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve, for checkpoints to record."""
        found = {"text": self.text.identity}
        if self.clip_text is not None and self.clip_image is not None:
            found |= {"clip_text": self.clip_text.identity, "clip_image": self.clip_image.identity}
        return found

    def tokenize(self, prompts: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays `encode` reads, for prompts (of any number; "" is no condition).

        The encoders must be loaded: precomputed tokens come from where they are stored.
        """
        ids, mask = self.text.tokenizer(prompts, warn=warn)
        arrays = {"text_ids": ids, "text_mask": mask}
        if self.clip_text is not None:
            same = self.clip_text is self.text
            clip = (ids, mask) if same else self.clip_text.tokenizer(prompts, warn=warn)
            clip_ids, clip_mask = clip
            arrays |= {"clip_ids": clip_ids, "clip_mask": clip_mask}
        arrays["present"] = np.array([bool(prompt.strip()) for prompt in prompts])
        return arrays

    def token_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of what `encode` reads of a batch, as prepared for training."""
        shapes = {"present": jax.ShapeDtypeStruct((batch_size,), jnp.bool_)}
        encoders = {"text": self.text}
        if self.clip_text is not None and self.clip_text is not self.text:
            encoders["clip"] = self.clip_text
        for prefix, encoder in encoders.items():
            rows = (batch_size, encoder.max_length)
            shapes[f"{prefix}_mask"] = jax.ShapeDtypeStruct(rows, jnp.bool_)
            if isinstance(encoder, Precomputed):
                tokens = jax.ShapeDtypeStruct((*rows, encoder.width), jnp.bfloat16)
                shapes[f"{prefix}_tokens"] = tokens
            else:
                shapes[f"{prefix}_ids"] = jax.ShapeDtypeStruct(rows, jnp.int32)
        return shapes

    def example(self) -> Condition:
        """Returns a condition of one row of zeros: the shapes and dtypes `encode` returns."""

        def tokens(encoder: TextEncoder | Precomputed) -> tuple[jax.Array, jax.Array]:
            length = encoder.max_length
            return jnp.zeros((1, length, encoder.width)), jnp.zeros((1, length), bool)

        clip = (None, None) if self.clip_text is None else tokens(self.clip_text)
        text, mask = tokens(self.text)
        return Condition(text, mask, jnp.zeros((1,), bool), *clip)

    def encode(self, frozen: Any, batch: Mapping[str, jax.Array]) -> Condition:
        """Encodes the arrays of `tokenize`, or takes precomputed tokens as they are.

        Those are NAME_tokens (B, L, D), zero where NAME_mask (B, L) is False, of any float dtype;
        NAME is "text" and, where the adapter's encoder is another one, "clip".
        Pure; no gradient reaches the encoders.
        """
        text, mask = self._encode(self.text, frozen, batch, "text")
        present = batch["present"]
        if self.clip_text is None:
            return Condition(text, mask, present)
        if self.clip_text is self.text:
            return Condition(text, mask, present, text, mask)
        clip = self._encode(self.clip_text, frozen, batch, "clip")
        return Condition(text, mask, present, *clip)

    @staticmethod
    def _encode(
        encoder: TextEncoder | Precomputed, frozen: Any, batch: Mapping[str, jax.Array], name: str
    ) -> tuple[jax.Array, jax.Array]:
        mask = batch[f"{name}_mask"]
        if isinstance(encoder, Precomputed):
            return batch[f"{name}_tokens"].astype(jnp.float32), mask
        return encoder.encode(frozen[encoder.identity], batch[f"{name}_ids"], mask)

    def image_tokens(self, frozen: Any, images: jax.Array) -> jax.Array:
        """Returns CLIP's tokens (B, 1 + g*g, D) of images in [-1, 1], differentiable in them."""
        encoder = self.clip_image
        return clip_image_tokens(encoder.module, frozen[encoder.identity], images)


def hidden(condition: Condition, visible: jax.Array) -> Condition:
    """Returns the condition with examples where `visible` (B,) is False turned to no condition."""
    return dataclasses.replace(condition, present=jnp.logical_and(condition.present, visible))

"""Context: pictures that show how, as tokens of frozen CLIP (Context Diffusion, 2024).

The tokens of an example's pictures are added up (or averaged) place by place, and a linear layer
brings them to the width of the text's: the denoiser attends to [text, context]. Pictures that are
not there add nothing; where there is none at all, a black one stands for it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.conditions.image_normalization import normalized
from contextdiff_jax.conditions.picture_files import check_path, is_there, read_pictures
from contextdiff_jax.encoders.frozen import ImageEncoder
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.layers import Dense
from contextdiff_jax.spaces.pixels import from_uint8

Combine = Literal["sum", "mean"]


@dataclasses.dataclass(frozen=True)
class ContextImages(Condition):
    """Paths of one to `most` picture files; None is no context.

    side: of the pictures in a batch. combine: how the tokens of several become one picture's.
    floor: of their normalization; 0 leaves them as they are. width, adapter_width: of the tokens
    for the denoiser and for the adapter (None without one). encoder: CLIP's vision tower, whose
    parameters are passed in (`frozen`); None where only requests are checked.
    gives_null: whether the tokens of no context are the input "null_context" (B, L, width), for a
    denoiser that has no null token of its own.
    """

    name: ClassVar[str] = "context"
    null: ClassVar[Any] = None
    captioned: ClassVar[bool] = False
    empty_request: ClassVar[bool] = False

    most: int
    side: int
    combine: Combine = "sum"
    floor: float = 0.0
    width: int = 1
    adapter_width: int | None = None
    encoder: ImageEncoder | None = None
    gives_null: bool = False

    def check(self, value: Any) -> None:
        """Raises ValueError for what is no list of one to `most` picture files."""
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= self.most:
            count = f", it has {len(value)}" if isinstance(value, (list, tuple)) else ""
            raise ValueError(f"must be a list of 1 to {self.most} paths of picture files{count}")
        for path in value:
            check_path(path)

    def encoders(self) -> dict[str, ImageEncoder]:
        """Returns the encoder."""
        return {"context_image": self.encoder}

    def identities(self) -> dict[str, str]:
        """Returns which weights serve."""
        return {"context_image": self.encoder.identity}

    def without_adapter(self) -> "ContextImages":
        """Returns the condition for the denoiser alone."""
        return dataclasses.replace(self, adapter_width=None)

    def collate(
        self, values: Sequence[Sequence[str] | None], warn: bool = False
    ) -> dict[str, np.ndarray]:
        """Returns "context" (B, side, side, most, 4) uint8; ValueError for what is no picture."""
        rows = [read_pictures(value or (), self.most, self.side) for value in values]
        return {"context": np.stack(rows)}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        shape = (batch_size, self.side, self.side, self.most, 4)
        return {"context": jax.ShapeDtypeStruct(shape, jnp.uint8)}

    def init(self, key: jax.Array) -> Any:
        """Returns {"denoiser": ..., "adapter": ...}, boxed with logical axis names."""
        tokens, found = jnp.zeros((1, 1, self.encoder.width)), {}
        for number, (part, layer) in enumerate(self._layers().items()):
            found[part] = layer.init(jax.random.fold_in(key, number), tokens)["params"]
        return found

    def _layers(self) -> dict[str, Dense]:
        widths = {"denoiser": self.width, "adapter": self.adapter_width}
        names = (axes.EMBED, axes.CONTEXT)
        return {part: Dense(w, names) for part, w in widths.items() if w is not None}

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns the combined tokens (B, L, width), and those for the adapter."""
        tokens = self.tokens(frozen, batch["context"])
        every = jnp.ones(tokens.shape[:2], bool)
        given = {
            part: layer.apply({"params": params[part]}, tokens)
            for part, layer in self._layers().items()
        }
        adapter = given.get("adapter")
        masks = (every, None if adapter is None else every)
        inputs = {}
        if self.gives_null:
            nothing = self.tokens(frozen, jnp.zeros_like(batch["context"][:1, :, :, :1]))
            null = self._layers()["denoiser"].apply({"params": params["denoiser"]}, nothing)
            inputs["null_context"] = jnp.broadcast_to(null, given["denoiser"].shape)
        return Given(every[:, 0], given["denoiser"], masks[0], adapter, masks[1], inputs)

    def tokens(self, frozen: Mapping[str, Any], context: jax.Array) -> jax.Array:
        """Returns CLIP's tokens (B, L, D) of pictures (B, side, side, most, 4), combined."""
        present = is_there(context)
        none = ~present.any(axis=1)
        counted = present.at[:, 0].set(present[:, 0] | none)  # the black one
        images = from_uint8(jnp.moveaxis(context[..., :3], 3, 1))  # (B, most, side, side, 3)
        if self.floor:
            images = normalized(images, self.floor).pictures
        images = jnp.where(present[..., None, None, None], images, -1.0)
        flat = images.reshape(-1, *images.shape[2:])
        tokens = self.encoder.tokens(frozen[self.encoder.identity], flat)
        tokens = tokens.reshape(*images.shape[:2], *tokens.shape[1:])
        weights = counted.astype(jnp.float32)
        if self.combine == "mean":
            weights /= weights.sum(axis=1, keepdims=True)
        return jnp.einsum("bk,bkld->bld", weights, tokens)

    def protocol(self) -> dict[str, str]:
        """Says how it is made."""
        made = f"normalized, floor {self.floor:g}" if self.floor else "as they are"
        return {"context": f"{self.combine} of CLIP's tokens, pictures {made}"}

"""The class of a picture: an embedding for the denoiser, ResNet blocks over it for the adapter.

The denoiser attends to one learned token per class (LDM, Rombach et al. 2022), pooled into its
time embedding as well (ADM, Dhariwal & Nichol 2021); no class is its own learned null token. The
adapter reads a small picture of tokens that ResNet blocks make of an embedding of its own, as the
paper has it for classes. All of it trains.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.data.example import DamagedSample, Example, Source
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.blocks import ResBlock
from contextdiff_jax.networks.layers import Dense, GroupNorm, upsample_nearest, with_axes
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.suggestions import nearest

_SHOWN = 10  # classes that a message lists


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """Sizes of what is learned of a class.

    width: of the denoiser's token, its text_dim. adapter_width: of the adapter's tokens, its
    text_dim. channels: of the ResNet blocks. side: of the first grid of tokens; the adapter reads
    (2 side)^2.
    """

    width: int = dataclasses.field(default=512, metadata=most(2**14))
    adapter_width: int = dataclasses.field(default=512, metadata=most(2**14))
    channels: int = dataclasses.field(default=256, metadata=most(2**14))
    side: int = dataclasses.field(default=4, metadata=most(64))
    groups: int = dataclasses.field(default=32, metadata=most(2**14))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        for key in ("width", "adapter_width", "channels", "side", "groups"):
            if getattr(self, key) < 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least 1")
        if self.channels % self.groups:
            raise ValueError(
                f"{where}.groups = {self.groups}: must divide {where}.channels = {self.channels}"
            )


class Embedding(nn.Module):
    """A learned row (features,) for each of `count` classes."""

    count: int
    features: int

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Returns the rows of labels (B,), (B, features) float32."""
        init = with_axes(nn.initializers.normal(1.0), axes.VOCAB, axes.CONTEXT)
        table = self.param("table", init, (self.count, self.features))
        return jnp.take(table, labels, axis=0)


class ClassTokens(nn.Module):
    """Tokens of a class for the adapter: an embedding spread over a grid, three ResNet blocks.

    Attributes:
      count: number of classes.
      config: sizes.
      dtype: compute dtype.
    """

    count: int
    config: LabelConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Returns the tokens ((2 side)^2 of them) of labels (B,), (B, L, adapter_width) float32."""
        c = self.config
        h = Embedding(self.count, c.adapter_width, name="embedding")(labels)
        spread = (axes.CONTEXT, axes.CONV_OUT)
        h = Dense(c.side**2 * c.channels, spread, dtype=self.dtype, name="spread")(h)
        h = h.reshape(-1, c.side, c.side, c.channels)
        for number in range(2):
            h = ResBlock(c.channels, c.groups, dtype=self.dtype, name=f"res_{number}")(h)
        h = upsample_nearest(h)
        h = ResBlock(2 * c.channels, c.groups, dtype=self.dtype, name="res_2")(h)
        h = GroupNorm(c.groups, name="norm")(h)
        h = h.reshape(h.shape[0], -1, h.shape[-1])
        return Dense(c.adapter_width, (axes.EMBED, axes.CONTEXT), name="project")(h)


@dataclasses.dataclass(frozen=True)
class ClassLabel(Condition):
    """One of `classes`, by its name; "" is no class.

    for_adapter: whether there is an adapter that reads it.
    """

    name: ClassVar[str] = "label"

    classes: tuple[str, ...]
    config: LabelConfig
    for_adapter: bool = True
    dtype: Any = jnp.float32

    @property
    def _embedding(self) -> Embedding:
        return Embedding(len(self.classes), self.config.width)

    @property
    def _tokens(self) -> ClassTokens:
        return ClassTokens(len(self.classes), self.config, self.dtype)

    def check(self, value: Any) -> None:
        """Raises ValueError for what is no name of a class."""
        Condition.check(value)
        if value.strip() and value not in self.classes:
            raise ValueError(must_be_of(value, self.classes))

    def identities(self) -> dict[str, str]:
        """Returns which classes there are, in which order: a label is a place in it."""
        digest = hashlib.sha256("\n".join(self.classes).encode()).hexdigest()
        return {"classes": f"{len(self.classes)} classes {digest[:16]}"}

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns "label" (B,) int32 and "label_present" (B,) bool of names of classes.

        Raises ValueError for a name that is none of the classes.
        """
        places = {name: place for place, name in enumerate(self.classes)}
        for value in values:
            if value.strip() and value not in places:
                raise ValueError(f"label {value!r}: {must_be_of(value, self.classes)}")
        labels = [places.get(value, 0) for value in values]
        present = [bool(value.strip()) for value in values]
        return {"label": np.array(labels, np.int32), "label_present": np.array(present)}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        return {
            "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "label_present": jax.ShapeDtypeStruct((batch_size,), jnp.bool_),
        }

    def init(self, key: jax.Array) -> Any:
        """Returns {"denoiser": ..., "adapter": ...}, boxed with logical axis names."""
        keys, labels = jax.random.split(key), jnp.zeros((1,), jnp.int32)
        params = {"denoiser": self._embedding.init(keys[0], labels)["params"]}
        if self.for_adapter:
            params["adapter"] = self._tokens.init(keys[1], labels)["params"]
        return params

    def without_adapter(self) -> "ClassLabel":
        """Returns the condition for the denoiser alone."""
        return dataclasses.replace(self, for_adapter=False)

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns one token for the denoiser, (2 side)^2 for the adapter."""
        labels, present = batch["label"], batch["label_present"]
        token = self._embedding.apply({"params": params["denoiser"]}, labels)[:, None]
        mask = jnp.ones(token.shape[:2], bool)
        if not self.for_adapter:
            return Given(present, token, mask)
        tokens = self._tokens.apply({"params": params["adapter"]}, labels)
        return Given(present, token, mask, tokens, jnp.ones(tokens.shape[:2], bool))


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raises ValueError, `where` the key, unless they are two different names or more."""
    if len(classes) < 2:
        raise ValueError(f"{where} = {tuple(classes)!r}: must be two names or more")
    if not all(name.strip() for name in classes):
        raise ValueError(f"{where} has a blank name: that stands for no class")
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ValueError(f"{where} has {twice!r} twice: must be different names")


class LabelledSource:
    """A source whose captions are names of classes; a sample without one is damaged."""

    def __init__(self, source: Source, classes: Sequence[str]):
        self.name = source.name
        self._source = source
        self._classes = frozenset(classes)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return dataclasses.replace(example, captions=self._named(example.captions, example.key))

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the names alone, or raises DamagedSample."""
        return self._named(self._source.captions(index), f"sample {index}")

    def _named(self, captions: Sequence[str], key: str) -> tuple[str, ...]:
        found = tuple(caption for caption in captions if caption in self._classes)
        if not found:
            raise DamagedSample(key, "label is none of the classes")
        return found


def must_be_of(label: str, classes: Sequence[str]) -> str:
    """Returns what a message says of a label that is none of the classes."""
    more = f" ... ({len(classes)} in all)" if len(classes) > _SHOWN else ""
    return f"must be one of {', '.join(classes[:_SHOWN])}{more}{nearest(label, classes)}"

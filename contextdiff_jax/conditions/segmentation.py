"""A segmentation map: which class each pixel of a picture is of.

The denoiser sees the map, a learned vector for each class, beside the noisy picture, and attends to
one token of the classes' shares. The adapter reads tokens that ResNet blocks make of the map with
vectors of its own, averaged over the cells of a grid. All of it trains.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Int32, Integer

from contextdiff_jax.conditions.class_label import Embedding
from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.conditions.layout_networks import MapConfig, MapTokens
from contextdiff_jax.data.example import DamagedSample, Example, Source
from contextdiff_jax.data.segmentation import (
    MASK_MISSING,
    MASK_UNUSABLE,
    NAME,
    NO_LABEL,
    mask_size,
    read_mask,
)
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.layers import Dense, LayerNorm
from contextdiff_jax.system.json_files import read_regular

UNKNOWN = f"{MASK_UNUSABLE}: a number that is none of the classes'"
_MOST_BYTES = 1 << 26  # of a file that a request names


class SegmentMap(nn.Module):
    """A picture of the classes' learned vectors, and a channel of which pixels have a class.

    Attributes:
      count: number of classes.
      width: of the vectors.
    """

    count: int
    width: int

    @nn.compact
    def __call__(self, places: jax.Array) -> jax.Array:
        """Maps places (B, H, W) int32, NO_LABEL for none, to (B, H, W, width + 1) float32."""
        known = (places >= 0)[..., None].astype(jnp.float32)
        vectors = Embedding(self.count, self.width, name="embedding")(jnp.maximum(places, 0))
        return jnp.concatenate([vectors * known, known], axis=-1)


class SegmentTokens(nn.Module):
    """Tokens of a map for the adapter: ResNet blocks over the mean vectors of a grid's cells.

    Attributes:
      count: number of classes.
      config: sizes.
      dtype: compute dtype.
    """

    count: int
    config: MapConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, places: jax.Array) -> jax.Array:
        """Maps places (B, R, R) to (B, (grid / 4)^2, adapter_width); grid divides R."""
        painted = SegmentMap(self.count, self.config.painted, name="painted")(places)
        grid, cell = self.config.grid, places.shape[1] // self.config.grid
        cells = painted.reshape(-1, grid, cell, grid, cell, painted.shape[-1]).mean((2, 4))
        return MapTokens(self.config, self.dtype, name="blocks")(cells)


class SharesToken(nn.Module):
    """One token that says how much of the picture is of each class.

    Attributes:
      count: number of classes.
      width: of the token.
    """

    count: int
    width: int

    @nn.compact
    def __call__(self, places: jax.Array) -> jax.Array:
        """Maps places (B, H, W) to (B, 1, width) float32."""
        shares = jax.nn.one_hot(places, self.count).mean((1, 2))  # no class is a row of zeros
        token = Dense(self.width, (axes.VOCAB, axes.EMBED), name="project")(shares)
        return LayerNorm(name="norm")(token)[:, None]


@dataclasses.dataclass(frozen=True)
class Segmentation(Condition):
    """The map of a picture; in a request, the file of a square PNG of numbers; null is none.

    labels: the number of each class in files. side: of the pictures. for_adapter: whether there is
    an adapter that reads it.
    """

    name: ClassVar[str] = NAME
    captioned: ClassVar[bool] = False

    labels: tuple[int, ...]
    config: MapConfig
    side: int = 64
    for_adapter: bool = True
    dtype: Any = jnp.float32

    def _modules(self) -> dict[str, nn.Module]:
        """Returns what trains, by the names of the parameters."""
        count, c = len(self.labels), self.config
        modules = {"map": SegmentMap(count, c.painted), "token": SharesToken(count, c.width)}
        if self.for_adapter:
            modules["adapter"] = SegmentTokens(count, c, self.dtype)
        return modules

    def check(self, value: Any) -> None:
        """Raises ValueError for what is no file of a map with these numbers."""
        Condition.check(value)
        if value:
            self._read(value)

    def _read(self, file: str) -> np.ndarray:
        """Returns the places (side, side) of a file. Raises ValueError."""
        try:
            data = read_regular(epath.Path(file), _MOST_BYTES)
            width, height = size = mask_size(data, file)
            if width != height:
                raise ValueError(f"the map is {width}x{height}: must be square")
            return places_of(read_mask(data, file, size, self.side, "stretch"), file, self.labels)
        except (DamagedSample, OSError) as error:
            raise ValueError(str(error)) from error

    def identities(self) -> dict[str, str]:
        """Returns which numbers there are, in which order: a class is a place in it."""
        digest = hashlib.sha256(repr(self.labels).encode()).hexdigest()
        return {"labels": f"{len(self.labels)} labels {digest[:16]}"}

    def collate(self, values: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns "segmentation" (B, side, side) int32: places among the labels, or NO_LABEL.

        Raises ValueError as `check` does.
        """
        none = np.full((self.side, self.side), NO_LABEL, np.int32)
        return {NAME: np.stack([self._read(value) if value else none for value in values])}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        return {NAME: jax.ShapeDtypeStruct((batch_size, self.side, self.side), jnp.int32)}

    def init(self, key: jax.Array) -> Any:
        """Returns {"map", "token", "adapter"}, boxed with logical axis names."""
        places, modules = jnp.zeros((1, self.side, self.side), jnp.int32), self._modules()
        keys = jax.random.split(key, len(modules))
        return {
            name: module.init(own, places)["params"]
            for own, (name, module) in zip(keys, modules.items(), strict=True)
        }

    def without_adapter(self) -> "Segmentation":
        """Returns the condition for the denoiser alone."""
        return dataclasses.replace(self, for_adapter=False)

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns tokens for both networks, and the denoiser's input "condition_map"."""
        places = batch[NAME]
        made = {
            name: module.apply({"params": params[name]}, places)
            for name, module in self._modules().items()
        }
        present, token = (places >= 0).any(axis=(1, 2)), made["token"]
        inputs = {"condition_map": made["map"]}
        given = Given(present, token, jnp.ones(token.shape[:2], bool), inputs=inputs)
        if not self.for_adapter:
            return given
        read = made["adapter"]
        whole = jnp.ones(read.shape[:2], bool)
        return dataclasses.replace(given, adapter_tokens=read, adapter_mask=whole)


class SegmentedSource:
    """A source whose maps hold places among `labels`; a sample of another number is damaged."""

    def __init__(self, source: Source, labels: Sequence[int]):
        self.name = source.name
        self._source = source
        self._labels = tuple(labels)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        if NAME not in example.maps:
            raise DamagedSample(example.key, MASK_MISSING)
        places = places_of(example.maps[NAME], example.key, self._labels)
        return dataclasses.replace(example, maps={**example.maps, NAME: places})

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, or raises DamagedSample."""
        return self._source.captions(index)


def places_of(
    numbers: Integer[np.ndarray, "*shape"], key: str, labels: Sequence[int]
) -> Int32[np.ndarray, "*shape"]:
    """Returns the place among `labels` of every number, int32; NO_LABEL stays.

    Raises DamagedSample for a number that is none of them.
    """
    order = np.argsort(labels)
    ranked = np.asarray(labels)[order]
    found = np.minimum(np.searchsorted(ranked, numbers), len(ranked) - 1)
    if not np.all((ranked[found] == numbers) | (numbers == NO_LABEL)):
        raise DamagedSample(key, UNKNOWN)
    return np.where(numbers == NO_LABEL, NO_LABEL, order[found]).astype(np.int32)

"""A layout: what is where in a picture, as boxes with classes.

The denoiser attends to tokens, and may see the boxes painted into a picture beside the noisy one.
The adapter reads tokens that ResNet blocks make of painted boxes, as the paper has it. Tokens are
one for each object through a small transformer, or LDM's (Rombach et al. 2022): three for each
object in a sequence with pads, through a BERT-like one. All of it trains. No layout at all is the
denoiser's null token and a map that says so; a layout without objects is another thing.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.class_label import must_be_of
from contextdiff_jax.conditions.condition import Batch, Condition, Given, Shapes
from contextdiff_jax.conditions.layout_drawing import with_boxes
from contextdiff_jax.conditions.layout_networks import (
    LayoutTokens,
    MapConfig,
    ObjectTokens,
    Painted,
)
from contextdiff_jax.conditions.layout_tokens import VOCABULARY, layout_tokens
from contextdiff_jax.data.boxes import (
    NO_BOXES,
    Box,
    Boxes,
    line_of,
    mirrored,
    parse_line,
    read_boxes,
)
from contextdiff_jax.data.example import DamagedSample, Example, Source
from contextdiff_jax.networks.layout_transformer import LayoutTransformer, LayoutTransformerConfig
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.scalars import shown

MANY = "no usable boxes: more objects than the condition takes"
UNKNOWN = "no usable boxes: of none of the classes"


@dataclasses.dataclass(frozen=True)
class LayoutConfig(MapConfig):
    """Sizes of what is learned of a layout; see MapConfig for those of painted maps.

    objects: the most that one has. tokens: of the denoiser, one for each object or LDM's sequence.
    layers, heads: of their transformer. map: whether the denoiser sees painted boxes too, beside
    the noisy picture. listed: whether LDM's token of a class is its place in the list of classes,
    as models need it that sorted their classes by something else than these names.
    """

    objects: int = dataclasses.field(default=30, metadata=most(1024))
    tokens: Literal["objects", "ldm"] = "objects"
    layers: int = dataclasses.field(default=2, metadata=most(256))
    heads: int = dataclasses.field(default=8, metadata=most(1024))
    map: bool = True
    listed: bool = False

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        super().validate(where)
        for key, least in (("objects", 1), ("heads", 1), ("layers", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least {least}")
        if self.listed and self.tokens != "ldm":
            raise ValueError(f"{where}.listed = True: must be False, only LDM's tokens read it")
        if self.width % self.heads:
            raise ValueError(
                f"{where}.heads = {self.heads}: must divide {where}.width = {self.width}"
            )

    @property
    def transformer(self) -> LayoutTransformerConfig:
        """The sizes of LDM's transformer, for tokens "ldm"."""
        return LayoutTransformerConfig(
            VOCABULARY, 3 * self.objects + 2, self.width, self.layers, self.heads
        )


@dataclasses.dataclass(frozen=True)
class Layout(Condition):
    """Boxes of `classes`: a line of text or a list (data/boxes.py); "" is no layout at all.

    side: of the map that the denoiser sees. for_adapter: whether there is an adapter that reads it.
    """

    name: ClassVar[str] = "layout"

    classes: tuple[str, ...]
    config: LayoutConfig
    side: int = 64
    for_adapter: bool = True
    dtype: Any = jnp.float32

    @property
    def _tokens(self) -> nn.Module:
        c = self.config
        if c.tokens == "ldm":
            return LayoutTransformer(c.transformer, self.dtype)
        return ObjectTokens(len(self.classes), c.width, c.layers, c.heads, self.dtype)

    @property
    def _map(self) -> Painted:
        return Painted(len(self.classes), self.config.painted, self.side)

    @property
    def _adapter_tokens(self) -> LayoutTokens:
        return LayoutTokens(len(self.classes), self.config, self.dtype)

    # -- host side ----------------------------------------------------------------------------

    def check(self, value: Any) -> None:
        """Raises ValueError for what is no layout of these classes."""
        self.boxes(value)

    def boxes(self, value: Any) -> Boxes | None:
        """Returns the boxes of a value, None where it is no layout at all.

        Raises ValueError for what is no layout of these classes, or of too many objects.
        """
        if isinstance(value, str):
            if not value.strip():
                return None
            found = parse_line(value)
        elif isinstance(value, (list, tuple)):
            found = read_boxes(value)
        else:
            raise ValueError("must be a text, or a list of objects with a name and a box")
        if len(found) > self.config.objects:
            raise ValueError(f"has {len(found)} objects: must be at most {self.config.objects}")
        for box in found:
            if box.name not in self.classes:
                raise ValueError(f"{box.name!r} {must_be_of(box.name, self.classes)}")
        return found

    def drawn_over(self, value: Any, picture: np.ndarray) -> np.ndarray:
        """Returns the picture, enlarged where it is small, with boxes and their names over it."""
        return with_boxes(picture, self.boxes(value) or ())

    def adapter_places(self, value: Any) -> dict[str, list[int]]:
        """Returns the tokens whose centres lie in each box, or the nearest; "dog 2" is a second."""
        side = self.config.grid // 4
        found: dict[str, list[int]] = {}
        for number, box in enumerate(self.boxes(value) or ()):
            x0, y0, x1, y1 = (corner * side for corner in box.corners)
            rows, columns = _cells(y0, y1), _cells(x0, x1)
            name = f"{box.name} {number + 1}" if box.name in found else box.name
            found[name] = [row * side + column for row in rows for column in columns]
        return found

    def identities(self) -> dict[str, str]:
        """Returns which classes there are, in which order: an object's is a place in it."""
        digest = hashlib.sha256("\n".join(self.classes).encode()).hexdigest()
        return {"classes": f"{len(self.classes)} classes {digest[:16]}"}

    def collate(self, values: Sequence[Any], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the objects' arrays, padded to config.objects, and "layout_present" (B,).

        Raises ValueError as `boxes` does.
        """
        arrays = {
            name: np.zeros(shape.shape, shape.dtype)
            for name, shape in self.shapes(len(values)).items()
        }
        places = {name: place for place, name in enumerate(self.classes)}
        for row, value in enumerate(values):
            try:
                boxes = self.boxes(value)
            except ValueError as error:
                raise ValueError(f"layout {shown(value)}: {error}") from error
            arrays["layout_present"][row] = boxes is not None
            self._fill({name: array[row] for name, array in arrays.items()}, boxes or (), places)
        return arrays

    def _fill(self, row: Mapping[str, np.ndarray], boxes: Boxes, places: Mapping[str, int]) -> None:
        count = len(boxes)
        row["layout_real"][:count] = True
        if count:
            row["layout_classes"][:count] = [places[box.name] for box in boxes]
            row["layout_boxes"][:count] = [box.corners for box in boxes]
        if self.config.tokens == "ldm":
            # LDM shuffles objects anew each time; here a layout has one order, whatever its own.
            digest = hashlib.sha256(line_of(sorted(boxes, key=_order)).encode()).digest()
            order = np.random.default_rng(list(digest))
            row["layout_tokens"][:] = self.sequence(sorted(boxes, key=_order), order)

    def sequence(
        self, boxes: Sequence[Box], order: np.random.Generator | None = None
    ) -> np.ndarray:
        """Returns LDM's tokens of boxes, int32 (3 objects + 2,), in an order that `order` draws."""
        most, listed = self.config.objects, self.config.listed
        return layout_tokens(boxes, self.classes, order=order, most=most, listed=listed)

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of the arrays of `collate`."""
        objects = self.config.objects
        found = {
            "layout_classes": ((objects,), jnp.int32),
            "layout_boxes": ((objects, 4), jnp.float32),
            "layout_real": ((objects,), jnp.bool_),
            "layout_present": ((), jnp.bool_),
        }
        if self.config.tokens == "ldm":
            found["layout_tokens"] = ((3 * objects + 2,), jnp.int32)
        return {
            name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
            for name, (shape, dtype) in found.items()
        }

    # -- parameters, and on the device --------------------------------------------------------

    def init(self, key: jax.Array) -> Any:
        """Returns {"denoiser": {"tokens", "map"}, "adapter"}, boxed with logical axis names."""
        keys = jax.random.split(key, 3)
        row = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in self.shapes(1).items()}
        objects = _objects(row)
        denoiser = {"tokens": self._tokens.init(keys[0], *self._read(row))["params"]}
        if self.config.map:
            denoiser["map"] = self._map.init(keys[1], *objects)["params"]
        params = {"denoiser": denoiser}
        if self.for_adapter:
            params["adapter"] = self._adapter_tokens.init(keys[2], *objects)["params"]
        return params

    def without_adapter(self) -> "Layout":
        """Returns the condition for the denoiser alone."""
        return dataclasses.replace(self, for_adapter=False)

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns tokens for both networks, and the denoiser's input "condition_map", painted."""
        objects, own = _objects(batch), params["denoiser"]
        tokens = self._tokens.apply({"params": own["tokens"]}, *self._read(batch))
        ldm = self.config.tokens == "ldm"
        mask = jnp.ones(tokens.shape[:2], bool) if ldm else batch["layout_real"]
        inputs = {}
        if self.config.map:
            inputs["condition_map"] = self._map.apply({"params": own["map"]}, *objects)
        given = Given(batch["layout_present"], tokens, mask, inputs=inputs)
        if not self.for_adapter:
            return given
        read = self._adapter_tokens.apply({"params": params["adapter"]}, *objects)
        whole = jnp.ones(read.shape[:2], bool)
        return dataclasses.replace(given, adapter_tokens=read, adapter_mask=whole)

    def _read(self, batch: Batch) -> tuple[jax.Array, ...]:
        """Returns what the denoiser's tokens are made of."""
        return (batch["layout_tokens"],) if self.config.tokens == "ldm" else _objects(batch)


def _objects(batch: Batch) -> tuple[jax.Array, ...]:
    return batch["layout_classes"], batch["layout_boxes"], batch["layout_real"]


def _cells(low: float, high: float) -> range:
    """Returns the cells of a grid with centres between low and high, at least the middle's."""
    found = range(math.ceil(low - 0.5), math.ceil(high - 0.5))
    middle = int((low + high) / 2)
    return found or range(middle, middle + 1)


def _order(box: Box) -> tuple[str, tuple[float, ...]]:
    return box.name, box.corners


class LaidOutSource:
    """A source whose captions are the layouts of its boxes, also of mirrored pictures.

    A sample without boxes, with more than `objects`, or with one of another class is damaged.
    """

    def __init__(self, source: Source, classes: Sequence[str], objects: int):
        self.name = source.name
        self._source = source
        self._classes = frozenset(classes)
        self._objects = objects

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        boxes = example.boxes
        if boxes is None:
            raise DamagedSample(example.key, NO_BOXES)
        if len(boxes) > self._objects:
            raise DamagedSample(example.key, MANY)
        if not all(box.name in self._classes for box in boxes):
            raise DamagedSample(example.key, UNKNOWN)
        lines = (line_of(boxes),), (line_of(mirrored(boxes)),)
        return dataclasses.replace(example, captions=lines[0], mirrored_captions=lines[1])

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the layout alone; the picture is read, for its size says what a crop leaves."""
        return self[index].captions

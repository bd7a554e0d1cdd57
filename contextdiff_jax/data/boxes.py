"""Boxes with names over a picture: of strangers' rows, as one line of text, moved with the picture.

As text, a layout is its boxes with ";" between, each a name and the corners x0 y0 x1 y1 in sides of
the picture, y downwards: "red circle 0.1 0.1 0.5 0.5; blue square 0.5 0.4 0.9 0.8". ";" alone is a
layout without any object.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from contextdiff_jax.data.example import DamagedSample

NO_BOXES = "no usable boxes: missing"
NOT_A_LIST = "no usable boxes: not a list of objects with a name and a box"
OUTSIDE = "no usable boxes: a corner outside the picture"
NO_AREA = "no usable boxes: one of negative or no area"

LEAST_SIDE = 1e-5  # of a box; a thinner one has no area
MOST_BOXES = 10_000  # that a row may hold
_ROUNDING = 1e-4  # that corners may lie outside by: of boxes written in pixels, or as float16
_SHOWN = 60  # characters


class BadBoxes(ValueError):
    """What is no layout: a sentence, and `reason`, one of a small set of phrases, for counting."""

    def __init__(self, reason: str, sentence: str):
        self.reason = reason
        super().__init__(sentence)


@dataclasses.dataclass(frozen=True)
class Box:
    """name: of what is there. corners: x0, y0, x1, y1 in sides of the picture, y downwards."""

    name: str
    corners: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """Returns the share of the picture."""
        x0, y0, x1, y1 = self.corners
        return (x1 - x0) * (y1 - y0)


Boxes = tuple[Box, ...]


def read_boxes(value: Any) -> Boxes:
    """Returns the boxes of JSON: objects with "name" and "box", the corners in sides.

    Further keys are not read. Raises BadBoxes for what is no such list, or a box outside the
    picture or without area.
    """
    if not isinstance(value, (list, tuple)) or len(value) > MOST_BOXES:
        raise BadBoxes(
            NOT_A_LIST,
            f'must be a list of at most {MOST_BOXES} objects {{"name": "...", "box": '
            "[x0, y0, x1, y1]}",
        )
    found = []
    for item in value:
        name, corners = (
            (item.get("name"), item.get("box")) if isinstance(item, Mapping) else (None, None)
        )
        if not isinstance(name, str) or not isinstance(corners, Sequence) or len(corners) != 4:
            raise BadBoxes(
                NOT_A_LIST,
                f'object {str(item)[:_SHOWN]} must be {{"name": "...", "box": [x0, y0, x1, y1]}}',
            )
        found.append(_checked(name.strip(), corners))
    return tuple(found)


def parse_line(text: str) -> Boxes:
    """Returns the boxes of a layout's line. Raises BadBoxes as `read_boxes` does."""
    found = []
    for part in text.split(";"):
        words = part.split()
        if not words:
            continue
        try:
            corners = [float(word) for word in words[-4:]]
        except ValueError:
            corners = []
        if len(words) < 5 or len(corners) != 4:
            raise BadBoxes(
                NOT_A_LIST,
                f"{part.strip()[:_SHOWN]!r} must be a name and four numbers, x0 y0 x1 y1; "
                "boxes have ; between",
            )
        # `line_of` may have rounded a thin box that `read_boxes` took.
        found.append(_checked(" ".join(words[:-4]), corners, least=LEAST_SIDE / 2))
    return tuple(found)


def line_of(boxes: Iterable[Box]) -> str:
    """Returns the line that `parse_line` reads, with six decimals."""
    lines = [" ".join((box.name, *map(_number, box.corners))) for box in boxes]
    return "; ".join(lines) or ";"


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _checked(name: str, corners: Sequence[Any], least: float = LEAST_SIDE) -> Box:
    """Returns the box, inside the picture; least: of its sides. Raises BadBoxes."""
    # An int may be beyond all floats: it is finite, and outside.
    numbers = all(
        type(value) is int or (type(value) is float and math.isfinite(value)) for value in corners
    )
    where = f"box {str(list(corners))[:_SHOWN]} of {name[:_SHOWN]!r}"
    if not numbers or not name:
        raise BadBoxes(NOT_A_LIST, f"{where} must have a name and four finite numbers")
    if not all(-_ROUNDING <= value <= 1 + _ROUNDING for value in corners):
        raise BadBoxes(OUTSIDE, f"{where} must lie within the picture, 0 to 1")
    x0, y0, x1, y1 = (min(1.0, max(0.0, float(value))) for value in corners)
    if min(x1 - x0, y1 - y0) < least:
        raise BadBoxes(NO_AREA, f"{where} must have x0 < x1 and y0 < y1")
    return Box(name, (x0, y0, x1, y1))


def boxes_of_sample(value: Any, key: str) -> Boxes:
    """Returns `read_boxes` of a sample's column; what is wrong with it raises DamagedSample."""
    if value is None:
        raise DamagedSample(key, NO_BOXES)
    try:
        return read_boxes(value)
    except BadBoxes as error:
        raise DamagedSample(key, error.reason) from error


def names_of(boxes: Iterable[Box]) -> str:
    """Returns a caption of what is there, "boat, dog"."""
    return ", ".join(box.name for box in boxes)


def mirrored(boxes: Iterable[Box]) -> Boxes:
    """Returns the boxes of the picture mirrored left to right."""
    return tuple(
        Box(box.name, (1 - box.corners[2], box.corners[1], 1 - box.corners[0], box.corners[3]))
        for box in boxes
    )


def in_square(boxes: Iterable[Box], width: int, height: int, mode: str) -> Boxes:
    """Returns the boxes of a picture of this size after `decode.to_square`.

    mode: as there. What the crop leaves of a box stays; boxes outside of it are no longer there.
    Pixels of a border are rounded as there, to within half a pixel of the square.
    """
    if mode == "stretch":
        return tuple(boxes)
    edge = (max if mode == "border" else min)(width, height)
    scales = width / edge, height / edge
    found = []
    for box in boxes:
        corners = [
            min(1.0, max(0.0, 0.5 + (value - 0.5) * scales[axis % 2]))
            for axis, value in enumerate(box.corners)
        ]
        if min(corners[2] - corners[0], corners[3] - corners[1]) >= LEAST_SIDE:
            found.append(Box(box.name, tuple(corners)))
    return tuple(found)

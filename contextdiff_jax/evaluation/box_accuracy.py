"""Is at every box what the layout says? Read back exactly, on rendered scenes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from contextdiff_jax.data.boxes import Box, Boxes, parse_line
from contextdiff_jax.data.scenes_drawing import box_of
from contextdiff_jax.evaluation.scenes_checker import Seen, read

LAYOUTS = 256  # by default
LEAST_IOU = 0.5  # of a box and the object there, as PASCAL VOC and COCO's AP50 have it
ASPECTS = ("placed", "colour", "shape", "colour_and_shape")
_AGAINST = {"layouts": "their layouts", "shuffled": "shuffled layouts (chance)"}


@dataclasses.dataclass(frozen=True)
class BoxAccuracy:
    """Shares of boxes, and of whole pictures.

    shares: of the boxes that an object overlaps by LEAST_IOU or more (placed), and of those where
    it also has the right colour, shape, or both. pictures: share in which all boxes are right and
    nothing else is. boxes: how many. iou: the mean over all boxes, 0 where no object is.
    """

    boxes: int
    shares: dict[str, float]
    pictures: float
    iou: float

    def to_json(self) -> dict[str, float]:
        """Returns everything, flat."""
        whole = {"pictures": self.pictures, "iou": self.iou}
        return {"boxes": self.boxes, **self.shares, **whole}


def box_accuracy(pictures: np.ndarray, layouts: Sequence[str]) -> BoxAccuracy:
    """Compares pictures (N, H, W, 3) uint8 of scenes with N layouts (data/boxes.py), one each.

    Objects of the picture and boxes are paired one to one, the largest overlaps first. Raises
    ValueError for a class that is no colour and shape of the scenes.
    """
    if len(pictures) != len(layouts):
        raise ValueError(f"{len(pictures)} pictures for {len(layouts)} layouts: must be as many")
    found: list[tuple[float, bool, bool]] = []
    whole = []
    for picture, layout in zip(pictures, layouts, strict=True):
        boxes, seen = parse_line(layout), read(picture)
        compared = [_compared(box, thing) for box, thing in _paired(boxes, seen)]
        found += compared
        whole.append(len(seen) == len(boxes) and all(_right(each) for each in compared))
    rows = np.array(found, float).reshape(-1, 3)
    placed, colour, shape = (rows[:, 0] >= LEAST_IOU), rows[:, 1] > 0, rows[:, 2] > 0
    by_aspect = (placed, placed & colour, placed & shape, placed & colour & shape)
    shares = {
        name: float(values.mean()) if len(rows) else 0.0
        for name, values in zip(ASPECTS, by_aspect, strict=True)
    }
    iou = float(rows[:, 0].mean()) if len(rows) else 0.0
    return BoxAccuracy(len(rows), shares, float(np.mean(whole)), iou)


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Returns intersection over union of two boxes (x0, y0, x1, y1)."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    common = max(across, 0.0) * max(down, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def _paired(boxes: Boxes, seen: Sequence[Seen]) -> list[tuple[Box, Seen | None]]:
    """Returns each box with the object that is its own, None where none is left that overlaps."""
    overlaps = sorted(
        (
            (overlap(box.corners, _box(thing)), i, j)
            for i, box in enumerate(boxes)
            for j, thing in enumerate(seen)
        ),
        reverse=True,
    )
    own: dict[int, int] = {}
    for value, i, j in overlaps:
        if value > 0 and i not in own and j not in own.values():
            own[i] = j
    return [(box, seen[own[i]] if i in own else None) for i, box in enumerate(boxes)]


def _compared(box: Box, thing: Seen | None) -> tuple[float, bool, bool]:
    """Returns the overlap, and whether colour and shape are those of the box's class."""
    colour, _, shape = box.name.partition(" ")
    if thing is None:
        return 0.0, False, False
    iou = overlap(box.corners, _box(thing))
    return iou, thing.colour == colour, thing.shape == shape


def _right(compared: tuple[float, bool, bool]) -> bool:
    iou, colour, shape = compared
    return iou >= LEAST_IOU and colour and shape


def _box(thing: Seen) -> tuple[float, float, float, float]:
    # An object of no known shape is as wide as a circle of its size.
    return box_of(thing.shape or "circle", thing.x, thing.y, thing.radius)

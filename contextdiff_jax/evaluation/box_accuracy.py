"""Is at every box what the layout says? Read back exactly, on rendered scenes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.conditions.requests import names
from contextdiff_jax.data.boxes import Box, Boxes, parse_line
from contextdiff_jax.data.scenes_drawing import box_of
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.prompt_following import shuffled
from contextdiff_jax.evaluation.results import Gallery, Result, Table
from contextdiff_jax.evaluation.scenes_checker import Seen, read
from contextdiff_jax.runs.build import asked_conditions

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

    Objects of the picture and boxes are paired one to one, the largest overlaps first. A class that
    is no colour and shape of the scenes is nowhere right. Raises ValueError for another number of
    layouts than of pictures.
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


def measure(
    pictures: Mapping[str, np.ndarray],
    layouts: Sequence[str],
    protocol: Mapping[str, Any],
    galleries: tuple[Gallery, ...] = (),
) -> Result:
    """Compares each stage's pictures (N, H, W, 3) uint8 with N layouts, and those shuffled."""
    against = {"layouts": layouts, "shuffled": shuffled(layouts)}
    values = {
        stage: {name: box_accuracy(part, asked).to_json() for name, asked in against.items()}
        for stage, part in pictures.items()
    }
    columns = (*ASPECTS, "pictures", "iou")
    rows = [
        (stage, _AGAINST[name], *(found[column] for column in columns))
        for stage, compared in values.items()
        for name, found in compared.items()
    ]
    return Result(
        title="Is at every box what the layout says?",
        summary="Objects are read back from pictures of held-out layouts. Shares of boxes where "
        f"one lies with an overlap (IoU) of at least {LEAST_IOU:g}, and also has the colour, the "
        "shape or both; of pictures in which every box is right and nothing else is there; and the "
        "mean overlap. Shuffled layouts give the chance level.",
        values=values,
        protocol={**protocol, "least IoU": LEAST_IOU},
        tables=(
            Table("boxes", ("stage", "against", *(c.replace("_", " ") for c in columns)), (*rows,)),
        ),
        galleries=galleries,
    )


def plan_boxes(evaluation: Evaluation) -> Callable[[], Result]:
    """Is at every box what held-out layouts say? Read back exactly, of rendered scenes."""
    data, settings = evaluation.data(), evaluation.settings
    stages = [evaluation.stage]
    read_names = names(asked_conditions(evaluation.config, stages) or ())
    if data.source != "scenes" or settings.captions or read_names != ["layout"]:
        raise ValueError(
            "--what=boxes: only rendered scenes drawn from layouts can be checked, this is "
            f"{evaluation.trained_on.source!r} of {' and '.join(read_names) or 'nothing'}"
        )
    count = settings.count or LAYOUTS
    if count < 2:
        raise ValueError(f"--count={count}: must be at least 2, layouts are shuffled")
    source = evaluation.open_data(data)
    layouts = tuple(source.captions(index)[0] for index in range(count))

    def work() -> Result:
        pictures = evaluation.draw(layouts, "boxes")
        drawn = {stage: pictures.read(stage, range(count)) for stage in pictures.stages}
        shown = sample_gallery(pictures, evaluation.stage, "boxes")
        protocol = {**evaluation.protocol(), "split": data.split, "count": count}
        return measure(drawn, layouts, protocol, (shown,))

    return work

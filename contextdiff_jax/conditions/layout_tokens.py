"""LDM's discrete tokens of a layout (Rombach et al. 2022; Esser et al. 2021, taming-transformers).

Each object is three tokens: its class, its top left and its bottom right corner; a corner is a
place on a grid of 90 x 90. What is left of the sequence are pads, and its last two tokens are the
corners of the crop that the picture is of the whole one.
"""

from collections.abc import Sequence

import numpy as np

from contextdiff_jax.data.boxes import Box

GRID = 90  # the square root of the vocabulary, rounded down
PAD = 8191
VOCABULARY = 8192
MOST_OBJECTS = 30

Corners = tuple[float, float, float, float]
WHOLE: Corners = (0.0, 0.0, 1.0, 1.0)


def corner_token(x: float, y: float) -> int:
    """Returns the token of a corner in sides of the picture, 0 to 1."""
    return round(x * (GRID - 1)) + GRID * round(y * (GRID - 1))


def layout_tokens(
    boxes: Sequence[Box],
    classes: Sequence[str],
    crop: Corners = WHOLE,
    order: np.random.Generator | None = None,
    most: int = MOST_OBJECTS,
    listed: bool = False,
) -> np.ndarray:
    """Returns the sequence, int32 (3 most + 2,).

    The first `most` objects stay, in the order that `order` draws (None keeps theirs); those
    outside the crop are then dropped. Corners are of the whole picture, also where it is cropped.
    classes: the token of one is its place among their sorted names, or among them as `listed`.
    """
    token = {name: place for place, name in enumerate(classes if listed else sorted(classes))}
    kept = list(boxes[:most])
    if order is not None:
        kept = [kept[place] for place in order.permutation(len(kept))]
    found: list[int] = []
    for box in (box for box in kept if _meets(box.corners, crop)):
        x0, y0, x1, y1 = box.corners
        found += [token[box.name], corner_token(x0, y0), corner_token(x1, y1)]
    found += [PAD] * (3 * most - len(found))
    return np.array([*found, corner_token(*crop[:2]), corner_token(*crop[2:])], np.int32)


def _meets(box: Corners, crop: Corners) -> bool:
    across = min(box[2], crop[2]) - max(box[0], crop[0])
    down = min(box[3], crop[3]) - max(box[1], crop[1])
    return across > 0 and down > 0

"""Captioned scenes of coloured shapes, rendered here: unlimited, exact, without any download.

Scene i of a split is a pure function of (split, i). A caption names what is there: "a red
circle", "a small red circle at the top left", "a red circle left of a blue square". Every
ninth combination of colour, shape and place (a cell of the 3 x 3 grid, or a side of a pair) is
kept out of "train" and "test"; the "compositional" scenes all show at least one of them.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from contextdiff_jax.data.boxes import Box, Boxes
from contextdiff_jax.data.config import COLOURS, SCENE_SPLITS, SHAPES, DataConfig, ScenesConfig
from contextdiff_jax.data.example import Example
from contextdiff_jax.data.scenes_drawing import PALETTE, box_of, draw

CELLS = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
"""The places of a single object, row by row."""
RELATIONS = ("left of", "right of", "above", "below")
SIZES = ("small", "large")
CELL_CENTRES = (0.31, 0.5, 0.69)  # of a single object, in sides
CELL_BORDERS = (0.405, 0.595)
SIZE_BORDER = 0.21  # radius, in sides, between small and large

_NUMBER = 2**31
_HELD_OUT_OF = 9
_SIDES = ("left", "right", "above", "below")  # places of a pair's objects, after the cells
_PAIR_CENTRES = {
    "left of": ((0.24, 0.5), (0.76, 0.5)),
    "right of": ((0.76, 0.5), (0.24, 0.5)),
    "above": ((0.5, 0.24), (0.5, 0.76)),
    "below": ((0.5, 0.76), (0.5, 0.24)),
}
_PAIR_SIDES = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("above", "below"),
    "below": ("below", "above"),
}
_RADII = {"small": (0.16, 0.18), "large": (0.24, 0.26), "pair": (0.165, 0.18)}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object. centre (x, y; y downwards) and radius in sides; rgb varies around its colour."""

    colour: str
    shape: str
    centre: tuple[float, float]
    radius: float
    rgb: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects on a plain light background (sRGB), and what is said about them."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    caption: str


class ScenesSource:
    """2^31 rendered scenes of one split."""

    def __init__(self, config: DataConfig):
        self.name = f"scenes {config.split}"
        self._config = config

    def __len__(self) -> int:
        return _NUMBER

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        key = f"{self._config.split}/{index}"
        picture = render(scene, self._config.resolution)
        return Example(picture, (scene.caption,), key, boxes=boxes(scene))

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the caption alone."""
        return (self.scene(index).caption,)

    def scene(self, index: int) -> Scene:
        """Returns what is drawn at this index."""
        if not 0 <= index < _NUMBER:
            raise IndexError(f"scene {index} of {_NUMBER}")
        return make_scene(self._config.scenes, self._config.split, index)


def boxes(scene: Scene) -> Boxes:
    """Returns the exact box of each object; its name is colour and shape, "red circle"."""
    return tuple(
        Box(f"{thing.colour} {thing.shape}", box_of(thing.shape, *thing.centre, thing.radius))
        for thing in scene.things
    )


def render(scene: Scene, side: int) -> np.ndarray:
    """Returns the scene as uint8 (side, side, 3)."""
    image = np.empty((side, side, 3), np.float32)
    image[:] = scene.background
    for thing in scene.things:
        draw(image, thing.shape, thing.centre, thing.radius, thing.rgb)
    return (image + 0.5).astype(np.uint8)


def held_out(colour: str, shape: str, place: str) -> bool:
    """Whether this combination is kept out of training; place: a cell phrase or a side.

    Every colour and shape is seen together, and at every place, only not all three at once:
    each pair of colour and shape misses one of its nine cells.
    """
    number = (*CELLS, *_SIDES).index(place)
    return (2 * COLOURS.index(colour) + 4 * SHAPES.index(shape) + number) % _HELD_OUT_OF == 0


def make_scene(config: ScenesConfig, split: str, index: int) -> Scene:
    """Returns scene `index` of a split, drawn again until it belongs to the split."""
    rng = np.random.default_rng([SCENE_SPLITS.index(split), index])
    while True:
        draws = iter(rng.random(24).tolist())
        pair = next(draws) < config.pairs
        plan = (_plan_pair if pair else _plan_single)(config, draws, split == "compositional")
        things, places, caption = plan
        new = any(
            held_out(thing.colour, thing.shape, place)
            for thing, place in zip(things, places, strict=True)
        )
        if new == (split == "compositional"):
            background = tuple(228 + int(27 * next(draws)) for _ in range(3))
            return Scene(things, background, caption)


_Plan = tuple[tuple[Thing, ...], tuple[str, ...], str]


def _plan_single(config: ScenesConfig, draws: Iterator[float], say_place: bool) -> _Plan:
    colour, shape = _pick(config.colours, draws), _pick(config.shapes, draws)
    cell, size = int(9 * next(draws)), _pick(SIZES, draws)
    centre = (CELL_CENTRES[cell % 3], CELL_CENTRES[cell // 3])
    thing = _thing(colour, shape, centre, size, draws)
    bare, sized = next(draws) < config.bare, next(draws) < 0.5
    if bare and not say_place:
        caption = f"a {colour} {shape}"
    else:
        caption = f"a {size + ' ' if sized else ''}{colour} {shape} {CELLS[cell]}"
    return (thing,), (CELLS[cell],), caption


def _plan_pair(config: ScenesConfig, draws: Iterator[float], say_place: bool) -> _Plan:
    del say_place  # the relation always says it
    relation = _pick(RELATIONS, draws)
    first = _pick(config.colours, draws)
    second = _pick(tuple(colour for colour in config.colours if colour != first), draws)
    shapes = _pick(config.shapes, draws), _pick(config.shapes, draws)
    things = tuple(
        _thing(colour, shape, centre, "pair", draws)
        for colour, shape, centre in zip(
            (first, second), shapes, _PAIR_CENTRES[relation], strict=True
        )
    )
    caption = f"a {first} {shapes[0]} {relation} a {second} {shapes[1]}"
    return things, _PAIR_SIDES[relation], caption


def _thing(
    colour: str, shape: str, centre: tuple[float, float], size: str, draws: Iterator[float]
) -> Thing:
    """Returns the object with its small random shifts of place, size and colour."""
    low, high = _RADII[size]
    x, y = (value + 0.03 * (next(draws) - 0.5) for value in centre)
    shift = 16 * (next(draws) - 0.5)
    rgb = tuple(min(255, max(0, round(value + shift))) for value in PALETTE[colour])
    return Thing(colour, shape, (x, y), low + (high - low) * next(draws), rgb)


def _pick(choices: tuple, draws: Iterator[float]):
    return choices[int(len(choices) * next(draws))]

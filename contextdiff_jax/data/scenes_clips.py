"""Clips of a coloured shape that moves, rendered here, with captions and exact edits.

Clip i of a split is a pure function of (split, i): one shape on a straight path on a plain light
background, and sometimes a second one that stands still and that no edit touches. Half of the
captions are bare, "a red circle", half say where it goes: "a red circle moving right".
"""

import dataclasses
import math
from typing import Literal, get_args

import numpy as np

from contextdiff_jax.data.config import COLOURS, SCENE_SPLITS, SHAPES
from contextdiff_jax.data.scenes import Scene, Thing, render
from contextdiff_jax.data.scenes_drawing import PALETTE, REACH, coverage

DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}  # y downwards
Edit = Literal["colour", "shape", "both", "identity"]
_CLIPS = 0x636C6970  # a stream of its own beside the scenes'
_LENGTH = (0.28, 0.4)  # of the path, in sides
_RADII = (0.15, 0.18)
_SECOND = 0.35  # share of clips with a second shape
_LANES = (0.26, 0.74)  # across the path, where there are two


@dataclasses.dataclass(frozen=True)
class MovingScene:
    """A clip. moving: the shape in the first frame. step: (x, y) in sides from frame to frame.

    shift: what its colour differs by from the palette's. other: a shape that stands still, or None.
    direction: where it goes. bare: whether the caption leaves that out.
    """

    moving: Thing
    step: tuple[float, float]
    shift: int
    other: Thing | None
    background: tuple[int, int, int]
    direction: str
    bare: bool
    frames: int

    @property
    def caption(self) -> str:
        """What the clip shows."""
        said = f"a {self.moving.colour} {self.moving.shape}"
        said += "" if self.bare else f" moving {self.direction}"
        return (
            said if self.other is None else f"{said} and a {self.other.colour} {self.other.shape}"
        )

    def centre(self, frame: int) -> tuple[float, float]:
        """Returns where the moving shape is, (x, y) in sides."""
        (x, y), (right, down) = self.moving.centre, self.step
        return x + frame * right, y + frame * down

    def scene(self, frame: int) -> Scene:
        """Returns what one frame shows."""
        moved = dataclasses.replace(self.moving, centre=self.centre(frame))
        things = (moved,) if self.other is None else (moved, self.other)
        return Scene(things, self.background, self.caption)

    def render(self, side: int) -> np.ndarray:
        """Returns the frames, uint8 (F, side, side, 3)."""
        return np.stack([render(self.scene(frame), side) for frame in range(self.frames)])

    def mask(self, side: int) -> np.ndarray:
        """Returns where any shape of the moving one's size may be, bool (F, side, side)."""
        found = np.zeros((self.frames, side, side), bool)
        reach = REACH * self.moving.radius * side + 1
        places = np.arange(side) + 0.5
        for frame in range(self.frames):
            x, y = (value * side for value in self.centre(frame))
            near = np.abs(places - y)[:, None] <= reach, np.abs(places - x)[None] <= reach
            found[frame] = near[0] & near[1]
        return found

    def flow(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns where what each frame but the first shows was in the frame before, and where so.

        Offsets (x, y) in pixels, float32 (F - 1, side, side, 2); bool (F - 1, side, side), False at
        the rim of the moving shape and where it came or left, which no frame before shows.
        """
        right, down = (part * side for part in self.step)
        radius, pixels = self.moving.radius * side, range(side)
        centres = ([side * part for part in self.centre(frame)] for frame in range(self.frames))
        shares = np.stack(
            [coverage(self.moving.shape, x, y, radius, pixels, pixels) for x, y in centres]
        )
        inside = shares[1:] == 1
        for rows in {math.floor(down), math.ceil(down)}:
            for columns in {math.floor(right), math.ceil(right)}:
                inside &= np.roll(shares[:-1] == 1, (rows, columns), (1, 2))
        still = (shares[1:] == 0) & (shares[:-1] == 0)
        offsets = np.where(inside[..., None], (-right, -down), 0.0)
        return offsets.astype(np.float32), inside | still

    def edited(self, edit: Edit) -> "MovingScene":
        """Returns the exact edit: the next colour, the next shape, both, or the clip itself.

        Raises ValueError for another edit.
        """
        if edit not in get_args(Edit):
            raise ValueError(f"edit = {edit!r}: must be one of {', '.join(get_args(Edit))}")
        moving, other = self.moving, self.other
        if edit in ("colour", "both"):
            colour = _next(COLOURS, moving.colour, other and other.colour)
            moving = dataclasses.replace(moving, colour=colour, rgb=_rgb(colour, self.shift))
        if edit in ("shape", "both"):
            moving = dataclasses.replace(moving, shape=_next(SHAPES, moving.shape))
        return dataclasses.replace(self, moving=moving)


def make_clip(split: str, index: int, frames: int = 8) -> MovingScene:
    """Returns clip `index` of a split. Raises ValueError for a split that there is not."""
    if split not in SCENE_SPLITS:
        raise ValueError(f"split = {split!r}: must be one of {', '.join(SCENE_SPLITS)}")
    rng = np.random.default_rng([_CLIPS, SCENE_SPLITS.index(split), index])
    draws = iter(rng.random(16).tolist())

    def pick(choices):
        return choices[int(len(choices) * next(draws))]

    colour, shape, direction = pick(COLOURS), pick(SHAPES), pick(tuple(DIRECTIONS))
    bare, two = next(draws) < 0.5, next(draws) < _SECOND
    length = _LENGTH[0] + (_LENGTH[1] - _LENGTH[0]) * next(draws)
    radius = _RADII[0] + (_RADII[1] - _RADII[0]) * next(draws)
    lane, jitter = pick((0, 1)), 0.04 * (next(draws) - 0.5)
    across = _LANES[lane] if two else 0.5 + 4 * jitter
    along = DIRECTIONS[direction]
    step = tuple(part * length / max(frames - 1, 1) for part in along)
    begin = 0.5 - sum(along) * length / 2 + jitter
    shift = round(16 * (next(draws) - 0.5))
    centre = (begin, across) if along[0] else (across, begin)
    moving = Thing(colour, shape, centre, radius, _rgb(colour, shift))
    other = None
    if two:
        kind = pick(tuple(each for each in COLOURS if each != colour)), pick(SHAPES)
        lane = _LANES[1 - lane]
        still = (0.5, lane) if along[0] else (lane, 0.5)
        other = Thing(*kind, still, _RADII[0], _rgb(kind[0], 0))
    background = tuple(228 + int(27 * next(draws)) for _ in range(3))
    return MovingScene(moving, step, shift, other, background, direction, bare, frames)


def _rgb(colour: str, shift: int) -> tuple[int, int, int]:
    return tuple(min(255, max(0, value + shift)) for value in PALETTE[colour])


def _next(choices: tuple[str, ...], own: str, taken: str | None = None) -> str:
    following = choices[choices.index(own) + 1 :] + choices[: choices.index(own)]
    return next(choice for choice in following if choice != taken)

"""Scenes for in-context generation: where and what by a query, how it looks by other pictures.

Each scene of one object comes with a query, its silhouette in black on white, and with other scenes
in its colour, texture and background, which differ in shape, size and place. All of it is a pure
function of (split, index). The caption names everything: "a red circle at the top left, striped".
"""

import dataclasses

import numpy as np

from contextdiff_jax.data.config import SCENE_SPLITS, DataConfig
from contextdiff_jax.data.example import Example
from contextdiff_jax.data.scenes import Scene, ScenesSource, Thing, make_scene, render

TEXTURES = ("plain", "striped", "barred", "checked")
"""All of the object's colour; rows, columns or fields of it lighter."""

_FIELDS = 8  # of a texture's pattern along a side
_LIGHT = 0.45  # how much of the colour is left where a texture is light
_OF_CONTEXT = 0x7FFFFFFF  # a stream beside the scenes' own, which has two numbers


@dataclasses.dataclass(frozen=True)
class Shown:
    """A scene with its texture, and what shows it.

    context: scenes of its colour, texture and background.
    """

    scene: Scene
    texture: str
    context: tuple[Scene, ...]

    @property
    def caption(self) -> str:
        """What is said about it: everything."""
        return f"{self.scene.caption}, {self.texture}"


class ContextScenesSource:
    """The scenes of a split with query and context.

    Their maps are "query", uint8 (R, R, 4), and "context", uint8 (R, R, scenes.context, 4): RGBA,
    where everything is opaque.
    """

    def __init__(self, config: DataConfig):
        self.name = f"scenes {config.split} in context"
        self._config = config
        self._scenes = ScenesSource(config)

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Example:
        shown, side = self.shown(index), self._config.resolution
        context = [opaque(textured(scene, shown.texture, side)) for scene in shown.context]
        maps = {"query": opaque(silhouette(shown.scene, side)), "context": np.stack(context, 2)}
        image = textured(shown.scene, shown.texture, side)
        return Example(image, (shown.caption,), f"{self._config.split}/{index}", maps=maps)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the caption alone."""
        return (self.shown(index).caption,)

    def shown(self, index: int) -> Shown:
        """Returns what is drawn at this index."""
        scene = self._scenes.scene(index)
        split = SCENE_SPLITS.index(self._config.split)
        rng = np.random.default_rng([split, index, _OF_CONTEXT])
        texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
        return Shown(scene, texture, tuple(self._like(scene, rng) for _ in range(self._count)))

    @property
    def _count(self) -> int:
        return self._config.scenes.context

    def _like(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Returns another scene of the split, in this one's colour and on its background."""
        [thing] = scene.things
        config = self._config
        other = make_scene(config.scenes, config.split, int(rng.integers(len(self))))
        [place] = other.things
        like = dataclasses.replace(place, colour=thing.colour, rgb=thing.rgb)
        return Scene((like,), scene.background, "")


def textured(scene: Scene, texture: str, side: int) -> np.ndarray:
    """Returns the scene in a texture, uint8 (side, side, 3)."""
    background = np.array(scene.background, np.float64)
    seen = (render(scene, side) - background) * kept(texture, side)
    return (background + seen + 0.5).astype(np.uint8)


def kept(texture: str, side: int) -> np.ndarray:
    """Returns how much of an object's colour a texture leaves, (side, side, 1) in 0..1."""
    place = np.arange(side) * _FIELDS // side % 2
    light = {
        "plain": np.zeros((side, side), int),
        "striped": np.broadcast_to(place[:, None], (side, side)),
        "barred": np.broadcast_to(place, (side, side)),
        "checked": place[:, None] ^ place,
    }[texture]
    return np.where(light, _LIGHT, 1.0)[..., None]


def silhouette(scene: Scene, side: int) -> np.ndarray:
    """Returns where the scene's objects are, black on white, uint8 (side, side, 3)."""
    things = tuple(_black(thing) for thing in scene.things)
    return render(Scene(things, (255, 255, 255), ""), side)


def _black(thing: Thing) -> Thing:
    return dataclasses.replace(thing, rgb=(0, 0, 0))


def opaque(image: np.ndarray) -> np.ndarray:
    """Returns RGB (..., 3) uint8 as RGBA (..., 4) without transparency."""
    return np.concatenate([image, np.full((*image.shape[:-1], 1), 255, np.uint8)], axis=-1)

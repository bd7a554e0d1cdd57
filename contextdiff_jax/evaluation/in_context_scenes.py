"""Do in-context pictures look as the context says, where the query says? Read back, on scenes.

Colour and texture can come from the context alone, shape and place from the query alone, where no
prompt is given. The texture is the one whose rendering of the seen object is nearest to the
picture.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.data.context_scenes import (
    TEXTURES,
    ContextScenesSource,
    Shown,
    kept,
    textured,
)
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.scenes import CELL_BORDERS, Scene, Thing
from contextdiff_jax.data.scenes_drawing import PALETTE
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.in_context_examples import written_examples
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.evaluation.scenes_checker import background_of, read
from contextdiff_jax.generation.generate import Pictures

SCENES = 128  # by default
FROM_CONTEXT, FROM_QUERY = ("colour", "texture"), ("shape", "place")
_SETS = {
    "context and query": ("context", "query"),
    "prompt, context and query": ("text", "context", "query"),
    "prompt and query": ("text", "query"),
}


@dataclasses.dataclass(frozen=True)
class Look:
    """What a picture shows; None where nothing known is there."""

    colour: str | None = None
    texture: str | None = None
    shape: str | None = None
    place: tuple[int, int] | None = None


def look_of(image: np.ndarray) -> Look:
    """Reads the one object of a picture, uint8 (side, side, 3); an empty Look for another number.

    Each texture is taken away in turn and the object read, and drawn again as it was read. The
    texture whose drawing is nearest to the picture is the one that is seen.
    place: column and row of the 3 x 3 grid.
    """
    readings = [_read_as(image, texture) for texture in TEXTURES]
    found = [reading for reading in readings if reading is not None]
    return min(found, key=lambda reading: reading[0], default=(0.0, Look()))[1]


def look_wanted(shown: Shown) -> Look:
    """Returns what a picture of the scene must show."""
    [thing] = shown.scene.things
    return Look(thing.colour, shown.texture, thing.shape, _place(thing.centre))


def _place(centre: tuple[float, float]) -> tuple[int, int]:
    column, row = (int(np.searchsorted(CELL_BORDERS, value)) for value in centre)
    return column, row


def _read_as(image: np.ndarray, texture: str) -> tuple[float, Look] | None:
    """Returns the squared distance to what is read if it has this texture; None for no object."""
    background = background_of(image)
    plain = background + (image - background) / kept(texture, len(image))
    seen = read((plain.clip(0, 255) + 0.5).astype(np.uint8))
    if len(seen) != 1:
        return None
    [thing] = seen
    look = Look(thing.colour, texture, thing.shape, _place((thing.x, thing.y)))
    if thing.colour is None or thing.shape is None:
        return math.inf, dataclasses.replace(look, texture=None)
    known = Thing(
        thing.colour, thing.shape, (thing.x, thing.y), thing.radius, PALETTE[thing.colour]
    )
    drawn = textured(Scene((known,), tuple(background), ""), texture, len(image))
    return float(np.square(drawn.astype(np.float64) - image).sum()), look


def agreement(looks: Sequence[Look], context: Sequence[Look], query: Sequence[Look]) -> dict:
    """Returns the shares of pictures that look as their context says, and are where their query is.

    looks: of the pictures. context, query: what each one's context and query show, as many.
    """
    if not len(looks) == len(context) == len(query):
        raise ValueError(f"{len(looks)} pictures for {len(context)} contexts: must be as many")
    shares: dict[str, float] = {}
    for aspects, wanted in ((FROM_CONTEXT, context), (FROM_QUERY, query)):
        pairs = list(zip(looks, wanted, strict=True))
        same = np.array([[getattr(a, x) == getattr(b, x) for x in aspects] for a, b in pairs])
        shares |= {aspect: float(same[:, i].mean()) for i, aspect in enumerate(aspects)}
        shares[" and ".join(aspects)] = float(same.all(axis=1).mean())
    return shares


def others(wanted: Sequence[Look]) -> list[Look]:
    """Returns each one's neighbour: the chance level's."""
    return [*wanted[1:], wanted[0]]


def plan_in_context(evaluation: Evaluation) -> Callable[[], Result]:
    """Do pictures follow their context and their query? Read back exactly, on rendered scenes."""
    data = evaluation.data()
    if data.source != "scenes" or not data.context:
        raise ValueError(
            "--what=in_context: only exports trained on scenes with scenes.context above 0 can be "
            "checked"
        )
    count = evaluation.settings.count or SCENES
    if count < 2:
        raise ValueError(f"--count={count}: must be at least 2, contexts are shuffled")
    source = ContextScenesSource(data)

    def work() -> Result:
        folder = evaluation.output / "in_context"
        examples = written_examples(source, range(count), folder, SkipReport())
        wanted = [look_wanted(source.shown(index)) for index in range(count)]
        drawn = {}
        for title, names in _SETS.items():
            folder = f"in_context_{'_'.join(names)}"
            drawn[folder] = title, evaluation.draw_requests(examples.asking(names), folder)
        return _result(evaluation, drawn, wanted, data.split)

    return work


def _result(
    evaluation: Evaluation,
    drawn: Mapping[str, tuple[str, Pictures]],
    wanted: Sequence[Look],
    split: str,
) -> Result:
    values: dict[str, Any] = {}
    rows = []
    for title, pictures in drawn.values():
        images = pictures.read(evaluation.stage, range(len(wanted)))
        looks = [look_of(image) for image in images]
        found = {
            "own": agreement(looks, wanted, wanted),
            "context of another": agreement(looks, others(wanted), wanted),
            "query of another": agreement(looks, wanted, others(wanted)),
        }
        values[title] = found
        rows += [(title, against, *shares.values()) for against, shares in found.items()]
    columns = ("given", "against", *next(iter(values.values()))["own"])
    count = len(wanted)
    return Result(
        title="Do the pictures look as the context says, where the query says?",
        summary="Colour and texture are compared with the context's, shape and place with the "
        "query's, of held-out scenes. Against another example's they give the chance level.",
        values=values,
        protocol={**evaluation.protocol(), "split": split, "count": count},
        tables=(Table("in_context", columns, tuple(rows)),),
        galleries=tuple(
            sample_gallery(pictures, evaluation.stage, folder, title)
            for folder, (title, pictures) in drawn.items()
        ),
    )

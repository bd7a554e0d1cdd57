"""Do pictures show what their prompts say? Read back exactly, on rendered scenes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import ScenesSource
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.results import Gallery, Result, Table
from contextdiff_jax.evaluation.scenes_checker import check, parse_caption

SCENES = 256  # prompts by default
ASPECTS = ("colour", "shape", "position", "size", "all")
_AGAINST = {
    "prompts": "their prompts",
    "one_object": "their prompts, of one object",
    "two_objects": "their prompts, of two objects",
    "shuffled": "shuffled prompts (chance)",
}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Shares of pictures that agree with a prompt, by aspect, and in colour and shape together."""

    count: int
    shares: dict[str, float]

    def to_json(self) -> dict[str, float]:
        """Returns shares by aspect, and the number of pictures."""
        return {"count": self.count, **self.shares}


def held_out_prompts(scenes: ScenesConfig, count: int, split: str = "test") -> list[str]:
    """Returns the captions of the first `count` scenes of a split that training never shows.

    split: "test" (unseen scenes) or "compositional" (unseen combinations).
    """
    source = ScenesSource(DataConfig(source="scenes", split=split, scenes=scenes))
    return [source.captions(index)[0] for index in range(count)]


def agreement(pictures: np.ndarray, prompts: Sequence[str]) -> Agreement:
    """Checks pictures (N, H, W, 3) uint8 against N prompts, one each."""
    return _shares(_checked(pictures, prompts))


def _checked(pictures: np.ndarray, prompts: Sequence[str]) -> list[dict[str, bool]]:
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(pictures)} pictures for {len(prompts)} prompts: must be as many")
    return [check(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]


def _shares(results: Sequence[Mapping[str, bool]]) -> Agreement:
    shares = {name: float(np.mean([result[name] for result in results])) for name in ASPECTS}
    both = np.mean([result["colour"] and result["shape"] for result in results])
    return Agreement(len(results), {"colour_and_shape": float(both)} | shares)


def by_objects(pictures: np.ndarray, prompts: Sequence[str]) -> dict[str, Agreement]:
    """Returns the agreement of all pictures with their prompts, under "prompts".

    Where prompts of both kinds occur, also that of each: "one_object" and "two_objects".
    """
    results = _checked(pictures, prompts)
    found = {"prompts": _shares(results)}
    things = np.array([len(parse_caption(prompt).things) for prompt in prompts])
    for number, name in enumerate(("one_object", "two_objects"), 1):
        part = [results[place] for place in np.flatnonzero(things == number)]
        if 0 < len(part) < len(results):
            found[name] = _shares(part)
    return found


def shuffled(prompts: Sequence[str], seed: int = 0) -> list[str]:
    """Returns the prompts in an order in which none keeps its place: the chance level's prompts."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    result = [""] * len(prompts)
    for place, following in zip(order, np.roll(order, 1), strict=True):
        result[place] = prompts[following]
    return result


def measure(
    pictures: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    protocol: Mapping[str, Any],
    galleries: tuple[Gallery, ...] = (),
) -> Result:
    """Checks each stage's pictures (N, H, W, 3) uint8 against N prompts, and those shuffled.

    Pictures of one and of two objects are counted apart, too.
    """
    values = {
        stage: {
            name: found.to_json()
            for name, found in {
                **by_objects(part, prompts),
                "shuffled": agreement(part, shuffled(prompts)),
            }.items()
        }
        for stage, part in pictures.items()
    }
    aspects = ("count", "colour_and_shape", *ASPECTS)
    rows = [
        (stage, _AGAINST[name], *(shares[aspect] for aspect in aspects))
        for stage, found in values.items()
        for name, shares in found.items()
    ]
    columns = ("stage", "against", *(aspect.replace("_", " ") for aspect in aspects))
    return Result(
        title="Do the pictures show what the prompts say?",
        summary="Colour, shape, place and size are read back from pictures of held-out scene "
        "descriptions. Shares of pictures that agree; shuffled prompts give the chance level.",
        values=values,
        protocol=dict(protocol),
        tables=(Table("scenes", columns, tuple(rows)),),
        galleries=galleries,
    )


def plan_scenes(evaluation: Evaluation) -> Callable[[], Result]:
    """Do pictures of rendered scenes show what held-out prompts say? Read back exactly."""
    data = evaluation.data()
    if data.source != "scenes" or evaluation.settings.captions:
        trained = evaluation.trained_on.source
        raise ValueError(f"--what=scenes: only rendered scenes can be checked, this is {trained!r}")
    count = evaluation.settings.count or SCENES
    if count < 2:
        raise ValueError(f"--count={count}: must be at least 2, prompts are shuffled")
    prompts = tuple(held_out_prompts(data.scenes, count, data.split))

    def work() -> Result:
        pictures = evaluation.draw(prompts, "scenes")
        read = {stage: pictures.read(stage, range(count)) for stage in pictures.stages}
        shown = sample_gallery(pictures, evaluation.stage, "scenes")
        protocol = {**evaluation.protocol(), "split": data.split, "count": count}
        return measure(read, prompts, protocol, (shown,))

    return work

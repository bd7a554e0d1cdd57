"""Context Diffusion's figures: RMSE and Frechet distance for each direction between styles.

A direction leads from the query's style to the one asked for, of a folder of photographs with their
edges, depth and segmentation as files: "edges to photo", "photo to depth". RMSE is the root of the
mean over pictures of each one's mean squared error, pixels in 0..1 (Najdenkoska et al. 2024).
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.extraction import collect
from contextdiff_jax.evaluation.feature_networks import FeatureNetwork, clip_folder, load_networks
from contextdiff_jax.evaluation.frechet import frechet_distance
from contextdiff_jax.evaluation.in_context_examples import Examples
from contextdiff_jax.evaluation.in_context_held_out import (
    BOTH,
    CONTEXT,
    PROMPT,
    Images,
    drawn,
    held_out,
    images_of,
    parts,
)
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.evaluation.statistics import FeatureStatistics
from contextdiff_jax.generation.generate import Pictures

Direction = tuple[str, str]
"""The query's style, and the one asked for."""


def rmse(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the root of the mean squared error of pairs of pictures (n, H, W, 3) uint8.

    Each picture's own mean squared error counts as much. Raises ValueError without any.
    """
    errors = [
        np.square(first.astype(np.float64) / 255 - second / 255.0).mean((1, 2, 3))
        for first, second in pairs
    ]
    if not errors:
        raise ValueError("0 pictures: an error needs at least 1")
    return float(np.sqrt(np.concatenate(errors).mean()))


def plan_directions(evaluation: Evaluation) -> Callable[[], Result]:
    """RMSE and Frechet distance of held-out pictures, by direction and by what is given."""
    settings = evaluation.settings
    asked = held_out(evaluation, "directions")
    measurable([asked.source.styles(place) for place in asked.places])
    folder = clip_folder(evaluation.config, evaluation.locate, settings.clip)
    network = load_networks(settings.features, settings.resize, folder, settings.batch_size).frechet

    def work() -> Result:
        examples, directions = asked.written(evaluation)
        pairs, alone = measurable(directions)
        found = {name: drawn(evaluation, examples, name)[1] for name in (BOTH, CONTEXT, PROMPT)}
        measure = _Measure(evaluation, network, examples, found)
        values: dict[str, Any] = {}
        for pair in pairs:
            chosen = [number for number, each in enumerate(directions) if each == pair]
            title = " to ".join(pair)
            values[title] = {"count": len(chosen), **measure(chosen)}
        result = _result(network, values, asked.protocol(evaluation, examples))
        return dataclasses.replace(result, warnings=(*result.warnings, *alone))

    return work


def measurable(directions: Sequence[Direction]) -> tuple[list[Direction], list[str]]:
    """Returns the directions of two pictures or more, sorted, and a warning for each of one.

    A Frechet distance needs two. Raises ValueError where no direction has them.
    """
    counts = sorted(collections.Counter(directions).items())
    found = [pair for pair, count in counts if count > 1]
    if not found:
        raise ValueError(
            f"--what=directions: {len(directions)} examples, each of another direction: must be "
            "more; give a larger --count, or a folder with more pictures"
        )
    alone = [" to ".join(pair) for pair, count in counts if count == 1]
    return found, [f"{title} has 1 picture, a distance needs 2: left out" for title in alone]


class _Measure:
    """Figures of some of the examples, for each set of pictures drawn of them.

    Features of a set are extracted once, in whole batches: a direction alone may fill none.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        network: FeatureNetwork,
        examples: Examples,
        sets: Mapping[str, Pictures],
    ):
        self._size, self._count = evaluation.settings.batch_size, len(examples)
        self._network, self._true = network, examples.true
        self._sets = {name: images_of(each, evaluation.stage) for name, each in sets.items()}
        self._features = {
            name: self._extracted(name, images)
            for name, images in {"true pictures": self._true, **self._sets}.items()
        }

    def _extracted(self, name: str, images: Images) -> np.ndarray:
        batches = (images(some) for some in parts(range(self._count), self._size))
        found = self._network.extraction(batches, self._count, f"features, {name}")
        return collect(found)[self._network.layer]

    def __call__(self, chosen: list[int]) -> dict[str, dict[str, float]]:
        true = self._statistics(chosen, "true pictures")
        return {
            name: {
                "RMSE": rmse((images(p), self._true(p)) for p in parts(chosen, self._size)),
                self._network.distance_name: frechet_distance(
                    self._statistics(chosen, name), true
                ).distance,
            }
            for name, images in self._sets.items()
        }

    def _statistics(self, chosen: list[int], name: str) -> FeatureStatistics:
        network = self._network
        found = FeatureStatistics(network.identity, network.dimension, f"{len(chosen)} pictures")
        found.update(self._features[name][chosen])
        return found


def _result(network: FeatureNetwork, values: dict[str, Any], protocol: dict) -> Result:
    columns, rows = ("direction", "given", "count", "RMSE", network.distance_name), []
    for title, found in values.items():
        for name in (BOTH, CONTEXT, PROMPT):
            rows.append((title, name, found["count"], *found[name].values()))
    few = min(found["count"] for found in values.values())
    note = ""
    if few <= network.dimension:
        note = (
            f"a direction has {few} pictures, not more than the {network.dimension} features: its "
            f"{network.distance_name} is biased upwards; compare only equal counts"
        )
    return Result(
        title="How near are the pictures of each direction to the true ones?",
        summary="A direction leads from the query's style to the one asked for. RMSE: pixels in "
        "0..1, the root of the mean over pictures.",
        values=values,
        protocol=protocol
        | {
            "features": network.identity.to_json(),
            "RMSE": "root of the mean of each picture's mean squared error, pixels in 0..1",
        },
        tables=(Table("directions", columns, tuple(rows), note=note),),
        warnings=(note,) if note else (),
    )

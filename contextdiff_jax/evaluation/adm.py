"""The measures of class-conditional models as ADM takes them: FID, sFID, IS, precision, recall.

Dhariwal & Nichol 2021, guided-diffusion/evaluations. FID and sFID (Nash et al. 2021) are distances
to a whole data set; the Inception Score is of parts of 5000 pictures; precision and recall are of
10,000 real pictures, 3 neighbours, and a ball's edge belongs to it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.inception import SPATIAL
from contextdiff_jax.evaluation.adm_batches import Batch, read_batch, write_batch
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.feature_networks import (
    CLIP_FEATURES,
    LOGITS,
    FeatureNetwork,
    inception_network,
)
from contextdiff_jax.evaluation.features import CHUNK, FeatureFiles, extract_features
from contextdiff_jax.evaluation.frechet import Moments, moments_distance, moments_of
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.inception_score import ADM_PART, adm_inception_score
from contextdiff_jax.evaluation.precision_recall import precision_recall
from contextdiff_jax.evaluation.reference import Reference
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.generation.generate import Pictures
from contextdiff_jax.parallel import distributed

COUNT = 50_000
_REAL = 10_000  # pictures of the reference for precision and recall
_NEIGHBOURS = 3
_RESIZE = "torch-fidelity"  # TensorFlow 1's, as in the evaluator's own graph
# What a weights file may hold, the best first.
_LAYERS = (("2048", LOGITS, SPATIAL), ("2048", SPATIAL), ("768", SPATIAL))


@dataclasses.dataclass(frozen=True)
class Real:
    """What pictures are compared with.

    pooled, spatial: moments of a whole data set. features: (n, D) pooled ones of some of its
    pictures, for precision and recall.
    """

    pooled: Moments
    spatial: Moments
    features: np.ndarray


class _OfBatch:
    """A reference batch, as ADM publishes them."""

    def __init__(self, path: str, network: FeatureNetwork):
        self.path, self.network, self.batch = path, network, read_batch(path)
        self.count = len(self.batch.pictures)
        _check_width(self.batch, network, path)

    def record(self) -> dict[str, Any]:
        """Returns what the reference is."""
        of = "moments in the file" if self.batch.pooled else "its pictures"
        return {"batch": self.path, "pictures": self.count, "distances to": of}

    def read(self, evaluation: Evaluation) -> Real:
        """Returns it; the features of its pictures are kept in OUTPUT."""
        batch, network = self.batch, self.network
        files = extract_features(
            evaluation.output / "adm_reference",
            {"features": network.record, "batch": hashlib.sha256(batch.pictures).hexdigest()},
            self.count,
            lambda places: batch.pictures[places.start : places.stop],
            network.extract,
            evaluation.watch,
        )
        pooled = batch.pooled or moments_of(files.parts(network.layer))
        return Real(pooled, batch.spatial or _spatial(files), files.all(network.layer))


class _OfData:
    """A source of data: distances to all of it, precision and recall of some at random."""

    def __init__(self, evaluation: Evaluation, data: DataConfig, network: FeatureNetwork):
        settings = evaluation.settings
        self.network = network
        self.reference = Reference(settings.reference, data, network, settings.count or COUNT)
        self.count = self.record()["images"]

    def record(self) -> dict[str, Any]:
        """Returns what the reference is."""
        return self.reference.record()

    def read(self, evaluation: Evaluation) -> Real:
        """Returns it; features are kept in OUTPUT."""
        real = self.reference.features(evaluation.output, evaluation.watch)
        features = real.features.all(self.network.layer)
        if len(features) > _REAL:
            order = np.random.default_rng(0).permutation(len(features))
            features = features[np.sort(order[:_REAL])]
        pooled = Moments(real.statistics.mean, real.statistics.covariance)
        return Real(pooled, _spatial(real.features), features)


def plan_adm(evaluation: Evaluation) -> Callable[[], Result]:
    """FID, sFID, Inception Score, precision and recall of 50,000 pictures, of all classes alike."""
    network = _network(evaluation)
    data = evaluation.data()
    asked, classes = evaluation.settings.reference, _classes(evaluation)
    captions, of = _captions(evaluation, data, classes)
    batch = len(asked) == 1 and asked[0].endswith(".npz")
    reference = _OfBatch(asked[0], network) if batch else _OfData(evaluation, data, network)
    for what, count in (("--count", len(captions)), ("pictures of --reference", reference.count)):
        if count <= _NEIGHBOURS:
            raise ValueError(
                f"{what} = {count}: must be at least {_NEIGHBOURS + 1}, precision and recall "
                f"use {_NEIGHBOURS} neighbours"
            )

    def work() -> Result:
        pictures = evaluation.draw(captions, "adm")
        if evaluation.settings.npz and distributed.is_main():
            _write(evaluation, pictures, classes)
        files = extract_features(
            pictures.folder / "features" / "inception",
            {"features": network.record, "stage": evaluation.stage, "pictures": pictures.digest()},
            len(pictures),
            lambda places: pictures.read(evaluation.stage, places),
            network.extract,
            evaluation.watch,
        )
        figures = measures(files, reference.read(evaluation), network)
        return _result(evaluation, network, figures, pictures, of, reference.record())

    return work


def measures(files: FeatureFiles, real: Real, network: FeatureNetwork) -> dict[str, float]:
    """Returns the figures of pictures' features by their names; no IS without class logits."""
    pooled = moments_of(files.parts(network.layer))
    found = {
        network.distance_name: moments_distance(pooled, real.pooled),
        "sFID": moments_distance(_spatial(files), real.spatial),
    }
    if LOGITS in network.extractor.layers:
        found["Inception Score"] = adm_inception_score(files.all(LOGITS)).mean
    shares = precision_recall(real.features, files.all(network.layer), _NEIGHBOURS, "closed")
    return found | {"precision": shares.precision, "recall": shares.recall}


def _spatial(files: FeatureFiles) -> Moments:
    return moments_of(files.parts(SPATIAL))


def _network(evaluation: Evaluation) -> FeatureNetwork:
    settings = evaluation.settings
    if settings.features == CLIP_FEATURES:
        raise ValueError("--features is missing: adm needs a safetensors file of Inception v3")
    if settings.resize != _RESIZE:
        raise ValueError(
            f"--resize={settings.resize}: must be {_RESIZE} for adm, which resizes so itself"
        )
    return inception_network(settings.features, _RESIZE, settings.batch_size, _LAYERS)


def _classes(evaluation: Evaluation) -> tuple[str, ...]:
    """Returns the classes that are drawn in turn; () where captions are."""
    if evaluation.settings.captions:
        return ()
    return tuple(evaluation.config.runs[evaluation.stage].task.class_names)


def _captions(
    evaluation: Evaluation, data: DataConfig, classes: tuple[str, ...]
) -> tuple[tuple[str, ...], str]:
    """Returns what is drawn, and what it is for people; of a task's classes all alike."""
    settings = evaluation.settings
    if not classes:
        captions = evaluation.captions(data, COUNT)
        return captions, settings.captions or f"{data.source} {data.path} (split {data.split})"
    count = settings.count or COUNT
    captions = tuple(classes[place % len(classes)] for place in range(count))
    return captions, f"{len(classes)} classes in turn"


def _check_width(batch: Batch, network: FeatureNetwork, path: str) -> None:
    if batch.pooled is None or batch.spatial is None:
        return
    for key, moments, width, hint in (
        ("mu", batch.pooled, network.dimension, "; FID needs weights up to the 2048"),
        ("mu_s", batch.spatial, network.width(SPATIAL), ""),
    ):
        if len(moments.mean) != width:
            raise ValueError(
                f"--reference={path}: {key} has {len(moments.mean)} features, --features gives "
                f"{width}{hint}"
            )


def _write(evaluation: Evaluation, pictures: Pictures, classes: tuple[str, ...]) -> None:
    """Writes the pictures for ADM's own evaluator; with a task's classes their numbers too."""

    def parts() -> Iterator[np.ndarray]:
        for start in range(0, len(pictures), CHUNK):
            yield pictures.read(evaluation.stage, range(start, min(start + CHUNK, len(pictures))))

    shape = len(pictures), *pictures.read(evaluation.stage, range(1)).shape[1:]
    numbers = np.arange(len(pictures)) % len(classes) if classes else None
    write_batch(evaluation.settings.npz, parts(), shape, numbers)


def _result(
    evaluation: Evaluation,
    network: FeatureNetwork,
    figures: Mapping[str, float],
    pictures: Pictures,
    of: str,
    reference: Mapping[str, Any],
) -> Result:
    count, warnings = len(pictures), []
    if count != COUNT:
        warnings.append(
            f"{count:,} pictures, not {COUNT:,}: comparable only with figures of as many."
        )
    if network.layer == "768":
        warnings.append("FID-768, its precision and its recall are of other features than ADM's.")
    return Result(
        title="ADM's measures",
        summary="Distances to a whole data set (lower is better), the Inception Score, and shares "
        "of pictures within each other's reach (higher is better).",
        values=dict(figures),
        protocol={
            "pictures": f"{count:,} of {of}",
            "sample count": count,
            "features": network.record,
            "sFID": f"{SPATIAL}, 7 channels of the graph's mixed_6/conv, 2023 numbers",
            "Inception Score": f"logits without bias, parts of {ADM_PART:,} in their order",
            "precision and recall": f"{_NEIGHBOURS} neighbours, edges included, float64",
            "reference": dict(reference),
            **evaluation.protocol(),
        },
        tables=(Table("adm", ("measure", "value"), tuple(figures.items())),),
        galleries=(sample_gallery(pictures, evaluation.stage, "adm"),),
        warnings=tuple(warnings),
    )

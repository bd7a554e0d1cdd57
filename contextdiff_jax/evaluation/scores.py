"""Measurements against real images: Frechet distance, precision and recall, CLIP scores, sweeps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from contextdiff_jax.evaluation import guidance_sweep
from contextdiff_jax.evaluation.evaluation import COCO, Evaluation
from contextdiff_jax.evaluation.feature_networks import (
    CLIP_FEATURES,
    LOGITS,
    FeatureNetwork,
    clip_folder,
    load_networks,
)
from contextdiff_jax.evaluation.features import FeatureFiles, extract_features
from contextdiff_jax.evaluation.frechet import FrechetDistance, frechet_distance
from contextdiff_jax.evaluation.galleries import chosen_gallery, sample_gallery
from contextdiff_jax.evaluation.inception_score import InceptionScore, inception_score
from contextdiff_jax.evaluation.precision_recall import PrecisionRecall, precision_recall
from contextdiff_jax.evaluation.reference import RealFeatures, Reference
from contextdiff_jax.evaluation.results import Gallery, Result, Table
from contextdiff_jax.evaluation.similarity import (
    ClipScore,
    clip_score,
    cosines,
    with_hessel_prefix,
)
from contextdiff_jax.evaluation.statistics import FeatureStatistics
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.generate import Pictures

FID30K = 30_000
_EXTREMES = 8  # pictures with the highest and lowest CLIP score
_SWEPT = 4  # captions shown at every scale
_NEIGHBOURS = 3  # of precision and recall
_SPLITS = 10  # of the Inception Score


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one set of pictures scored.

    clip: raw cosines of the captions as they are; its `hessel` of captions with Hessel's prefix.
    cosines (N,): of each picture and its caption. precision_recall: None where the reference is
    statistics alone, or smaller than needed. inception_score: None without class logits.
    """

    distance: FrechetDistance
    clip: ClipScore
    cosines: np.ndarray
    precision_recall: PrecisionRecall | None
    inception_score: InceptionScore | None

    def figures(self, distance_name: str) -> dict[str, float]:
        """Returns the figures by their names."""
        found = {
            distance_name: self.distance.distance,
            "CLIP cosine": self.clip.mean_cosine,
            "CLIPScore (Hessel)": self.clip.hessel,
        }
        if self.precision_recall is not None:
            names = ("precision", "recall", "density", "coverage")
            found |= {name: getattr(self.precision_recall, name) for name in names}
        if self.inception_score is not None:
            found["Inception Score"] = self.inception_score.mean
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the cosines of single pictures."""
        parts = {
            "distance": self.distance,
            "clip": self.clip,
            "precision_recall": self.precision_recall,
            "inception_score": self.inception_score,
        }
        return {name: part.to_json() for name, part in parts.items() if part is not None}


class Scorer:
    """Draws and scores pictures of the same captions against the same reference.

    Making one reads captions and data and loads the networks: what cannot be is refused here.
    """

    def __init__(self, evaluation: Evaluation, defaults: Mapping[str, str], count: int | None):
        settings = evaluation.settings
        self.evaluation = evaluation
        self.data = evaluation.data(defaults)
        self.captions = evaluation.captions(self.data, count)
        folder = clip_folder(evaluation.config, evaluation.locate, settings.clip)
        self.networks = load_networks(
            settings.features, settings.resize, folder, settings.batch_size
        )
        self.reference = Reference(
            settings.reference, self.data, self.networks.frechet, len(self.captions)
        )

    def real(self) -> RealFeatures:
        """Returns the reference's features; they are kept in OUTPUT."""
        return self.reference.features(self.evaluation.output, self.evaluation.watch)

    def draw(self, folder: str, cascade: Cascade) -> Pictures:
        """Draws one picture per caption into OUTPUT/folder."""
        return self.evaluation.draw(self.captions, folder, cascade)

    def score(self, pictures: Pictures, real: RealFeatures) -> Scores:
        """Scores one picture per caption; their features are kept beside them."""
        network, clip = self.networks.frechet, self.networks.clip
        embedded = self._features(pictures, clip, "clip")
        files = embedded
        if network is not clip:
            files = self._features(pictures, network, "inception")
        made = FeatureStatistics(network.identity, network.dimension, "the drawn pictures")
        for part in files.parts(network.layer):
            made.update(part)
        images = embedded.all(clip.layer)
        texts, prefixed = self._texts
        hessel = clip_score(images, prefixed).hessel
        return Scores(
            distance=frechet_distance(made, real.statistics),
            clip=dataclasses.replace(clip_score(images, texts), hessel=hessel),
            cosines=cosines(images, texts),
            precision_recall=self._precision_recall(files, real),
            inception_score=self._inception_score(files),
        )

    @functools.cached_property
    def _texts(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) of the captions as they are, and with Hessel's prefix."""
        asked = self.captions, with_hessel_prefix(self.captions)
        return tuple(self.networks.texts(captions) for captions in asked)

    def _precision_recall(self, files: FeatureFiles, real: RealFeatures) -> PrecisionRecall | None:
        few = min(real.statistics.count, files.images) <= _NEIGHBOURS
        if real.features is None or few:
            return None
        layer = self.networks.frechet.layer
        return precision_recall(real.features.all(layer), files.all(layer), _NEIGHBOURS)

    def _inception_score(self, files: FeatureFiles) -> InceptionScore | None:
        if LOGITS not in self.networks.frechet.extractor.layers or files.images < _SPLITS:
            return None
        return inception_score(files.all(LOGITS), _SPLITS)

    def _features(self, pictures: Pictures, network: FeatureNetwork, name: str) -> FeatureFiles:
        stage = self.evaluation.stage
        return extract_features(
            pictures.folder / "features" / name,
            {
                "features": network.identity.to_json(),
                "stage": stage,
                "pictures": pictures.digest(),
            },
            len(pictures),
            lambda places: pictures.read(stage, places),
            network.extract,
            self.evaluation.watch,
        )

    def protocol(self) -> dict[str, Any]:
        """Returns what the figures depend on."""
        settings, data = self.evaluation.settings, self.data
        source = settings.captions or f"{data.source} {data.path} (split {data.split})"
        return {
            "captions": f"{len(self.captions):,} of {source}, one picture each",
            "sample count": len(self.captions),
            "features": self.networks.frechet.identity.to_json(),
            "reference": self.reference.record(),
            "CLIP": self.networks.clip.identity.to_json(),
            **self.evaluation.protocol(),
        }

    def warnings(self, scores: Scores, real: RealFeatures) -> tuple[str, ...]:
        """Returns what forbids or weakens comparisons of these scores."""
        found = []
        if scores.distance.rank_deficient:
            found.append(f"Fewer samples than features: {scores.distance.note}.")
        if self.networks.frechet.layer == "768":
            found.append("FID-768 is of other features than FID: the two cannot be compared.")
        if self.evaluation.settings.features == CLIP_FEATURES:
            found.append(
                "The distance is of CLIP features, not FID: comparable only with the same CLIP."
            )
        if real.damaged:
            found.append(f"{real.damaged} images of the reference could not be used.")
        if self.reference.config is not None:
            found += self.evaluation.data_warnings(self.reference.config)
        return tuple(found)


def plan_fid(evaluation: Evaluation) -> Callable[[], Result]:
    """Distance to real images and agreement with the captions, one picture per caption."""
    return _plan(evaluation, "fid", {}, None, "Distance to real images")


def plan_fid30k(evaluation: Evaluation) -> Callable[[], Result]:
    """`plan_fid` on 30,000 random captions of COCO val2014."""
    return _plan(evaluation, "fid30k", COCO, FID30K, "FID-30K on COCO")


def _plan(
    evaluation: Evaluation, name: str, defaults: Mapping[str, str], count: int | None, title: str
) -> Callable[[], Result]:
    scorer = Scorer(evaluation, defaults, count)

    def work() -> Result:
        pictures = scorer.draw(name, evaluation.cascade)
        real = scorer.real()
        scores = scorer.score(pictures, real)
        figures = scores.figures(scorer.networks.frechet.distance_name)
        return Result(
            title=title,
            summary="One picture per caption. The Frechet distance compares them with real images "
            "(lower is better), the CLIP score each with its own caption (higher is better).",
            values=figures | {"scores": scores.to_json()},
            protocol=scorer.protocol(),
            tables=(Table(name, ("measure", "value"), tuple(figures.items())),),
            galleries=_galleries(pictures, evaluation.stage, name, scores.cosines),
            warnings=scorer.warnings(scores, real),
        )

    return work


def _galleries(
    pictures: Pictures, stage: str, folder: str, agreement: np.ndarray
) -> tuple[Gallery, ...]:
    order = np.argsort(agreement, kind="stable")
    count = min(_EXTREMES, len(order) // 2)
    chosen = (
        ("Highest CLIP score", order[::-1][:count]),
        ("Lowest CLIP score", order[:count]),
    )
    return (
        sample_gallery(pictures, stage, folder),
        *(
            chosen_gallery(pictures, stage, folder, places.tolist(), title, agreement)
            for title, places in chosen
        ),
    )


def plan_sweep(evaluation: Evaluation) -> Callable[[], Result]:
    """`plan_fid` at several guidance scales of the first stage."""
    scales = evaluation.settings.guidance
    if len(set(scales)) < len(scales) or len(scales) < 2 or min(scales) < 0:
        raise ValueError(f"--guidance={scales}: must be at least two different numbers, none < 0")
    evaluation.check_samplers(scales)
    scorer = Scorer(evaluation, {}, None)

    def work() -> Result:
        first = evaluation.cascade.stages[0].name
        real = scorer.real()
        scored, shown = {}, []
        for scale in scales:
            folder = f"sweep/{scale:g}"
            cascade = evaluation.cascade.with_sampler([f"{first}.guidance_scale={scale}"])
            pictures = scorer.draw(folder, cascade)
            scored[scale] = scorer.score(pictures, real)
            places = range(min(_SWEPT, len(pictures)))
            gallery = chosen_gallery(pictures, evaluation.stage, folder, places, "")
            shown.append([(file, f"w = {scale:g}: {caption}") for file, caption in gallery.items])
        # A row per caption, a column per scale.
        items = tuple(item for row in zip(*shown, strict=True) for item in row)
        return _sweep_result(scorer, scored, real, items)

    return work


def _sweep_result(
    scorer: Scorer,
    scored: Mapping[float, Scores],
    real: RealFeatures,
    items: tuple[tuple[str, str], ...],
) -> Result:
    name = scorer.networks.frechet.distance_name
    figures = {scale: scores.figures(name) for scale, scores in scored.items()}
    columns = ("guidance", *next(iter(figures.values())))
    figure = guidance_sweep.draw(
        list(figures),
        [row["CLIP cosine"] for row in figures.values()],
        [row[name] for row in figures.values()],
        name,
        scorer.evaluation.output,
    )
    protocol = scorer.protocol()
    first = next(iter(protocol["sampler"]))
    warnings = {w: None for s in scored.values() for w in scorer.warnings(s, real)}
    return Result(
        title="Guidance sweep",
        summary=f"The same captions and noise at several guidance scales of stage {first!r}: "
        "distance to real images against agreement with the captions.",
        values={"scales": {f"{scale:g}": scores.to_json() for scale, scores in scored.items()}},
        protocol=protocol | {"guidance": list(scored), "guided stage": first},
        tables=(Table("sweep", columns, tuple((w, *row.values()) for w, row in figures.items())),),
        figures=(figure,),
        galleries=(Gallery("The same captions at every scale", items, len(scored)),),
        warnings=tuple(warnings),
    )

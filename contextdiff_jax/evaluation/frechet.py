"""The Frechet distance between two Gaussians (Dowson & Landau 1982), on features: FID.

FID (Heusel et al. 2017) is this distance on Inception's 2048 pooled features; on others it has
another name, e.g. FID-768.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from contextdiff_jax.evaluation.statistics import (
    FeatureIdentity,
    FeatureStatistics,
    check_comparable,
)


@dataclasses.dataclass(frozen=True)
class FrechetDistance:
    """A distance with what it depends on.

    distance: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0. mean_term: its first summand.
    first, second: records of the two sets (source, count, dimension and identity of the features).
    rank_deficient: a set has no more samples than features, so its covariance is singular.
    note: what to know before comparing the number, or "".
    """

    distance: float
    mean_term: float
    first: dict[str, Any]
    second: dict[str, Any]
    rank_deficient: bool
    note: str

    def to_json(self) -> dict[str, Any]:
        """Returns all fields."""
        return dataclasses.asdict(self)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> FrechetDistance:
    """Returns the distance between two sets of features.

    The trace is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2): symmetric,
    real, never negative, whatever the ranks; float64.

    Raises ValueError where the features are of different kinds or a set has less than 2 samples.
    """
    check_comparable(first, second)
    moments = [Moments(each.mean, each.covariance) for each in (first, second)]
    shift = first.mean - second.mean
    few = [s for s in (first, second) if s.count <= s.dimension]
    return FrechetDistance(
        distance=moments_distance(*moments),
        mean_term=float(shift @ shift),
        first=first.to_json(),
        second=second.to_json(),
        rank_deficient=bool(few),
        note="; ".join(
            f"{s.source!r} has {s.count} samples for {s.dimension} features: its covariance is "
            "singular and the distance is biased upwards, compare only at the same counts"
            for s in few
        ),
    )


@dataclasses.dataclass(frozen=True)
class Moments:
    """mean: (D,). covariance: (D, D), with N - 1. Both float64."""

    mean: np.ndarray
    covariance: np.ndarray


def moments_of(parts: Iterable[np.ndarray]) -> Moments:
    """Returns the moments of features (n, D) of any float dtype, over all parts.

    Raises ValueError for fewer than two, or features that are not finite.
    """
    anonymous = FeatureIdentity("", "", "", "")
    statistics: FeatureStatistics | None = None
    for part in parts:
        statistics = statistics or FeatureStatistics(anonymous, part.shape[1], "the pictures")
        statistics.update(part)
    if statistics is None:
        raise ValueError("there are no features to take moments of")
    return Moments(statistics.mean, statistics.covariance)


def moments_distance(first: Moments, second: Moments) -> float:
    """Returns the distance of two Gaussians, as `frechet_distance` does."""
    shift = first.mean - second.mean
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    roots = trace_of_root(first.covariance, second.covariance)
    return max(float(shift @ shift) + traces - 2.0 * roots, 0.0)


def trace_of_root(first: np.ndarray, second: np.ndarray) -> float:
    """Returns tr((S1 S2)^(1/2)) of symmetric positive semidefinite (D, D) float64 matrices."""
    values, vectors = np.linalg.eigh(first)
    # Rounding makes zero eigenvalues slightly negative.
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ second @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2.0)
    return float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())

"""The Frechet distance between two Gaussians (Dowson & Landau 1982), on features: FID.

FID (Heusel et al. 2017) is this distance on Inception's 2048 pooled features; on others it has
another name, e.g. FID-768.
"""

import dataclasses
from typing import Any

import numpy as np

from contextdiff_jax.evaluation.statistics import FeatureStatistics, check_comparable


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
    covariances = first.covariance, second.covariance
    shift = first.mean - second.mean
    mean_term = float(shift @ shift)
    traces = sum(float(np.trace(covariance)) for covariance in covariances)
    distance = mean_term + traces - 2.0 * trace_of_root(*covariances)
    few = [s for s in (first, second) if s.count <= s.dimension]
    return FrechetDistance(
        distance=max(distance, 0.0),
        mean_term=mean_term,
        first=first.to_json(),
        second=second.to_json(),
        rank_deficient=bool(few),
        note="; ".join(
            f"{s.source!r} has {s.count} samples for {s.dimension} features: its covariance is "
            "singular and the distance is biased upwards, compare only at the same counts"
            for s in few
        ),
    )


def trace_of_root(first: np.ndarray, second: np.ndarray) -> float:
    """Returns tr((S1 S2)^(1/2)) of symmetric positive semidefinite (D, D) float64 matrices."""
    values, vectors = np.linalg.eigh(first)
    # Rounding makes zero eigenvalues slightly negative.
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    product = root @ second @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2.0)
    return float(np.sqrt(np.maximum(eigenvalues, 0.0)).sum())

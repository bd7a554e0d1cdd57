"""Improved precision and recall (Kynkaanniemi et al. 2019); density and coverage.

Density and coverage are Naeem et al.'s (2020). A set's manifold is the union of balls around its
features, each as large as the distance to its k-th neighbour in the set.
"""

import dataclasses
import operator
from collections.abc import Iterator
from typing import Literal

import numpy as np

from contextdiff_jax.evaluation.statistics import check_features

Boundary = Literal["open", "closed"]
_INSIDE = {"open": operator.lt, "closed": operator.le}

_BLOCK = 1024  # rows of a distance matrix held at a time


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """precision: share of generated features in a ball of the real ones. recall: the reverse.

    density: mean number of real balls that a generated feature lies in, over k. coverage: share of
    real balls with a generated feature inside. boundary: "open" (<, prdc) or "closed" (<=,
    torch-fidelity). real_count, generated_count: of the sets.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    boundary: Boundary
    real_count: int
    generated_count: int

    def to_json(self) -> dict[str, float | int | str]:
        """Returns all fields."""
        return dataclasses.asdict(self)


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = 3, boundary: Boundary = "open"
) -> PrecisionRecall:
    """Compares real (N, D) and generated (M, D) features of any float dtype, in float64.

    Distances are computed in blocks of rows: memory grows with N + M, not with N M.

    Raises ValueError where a set has no k neighbours, the widths differ, features are NaN or
    infinite, or boundary is unknown.
    """
    if boundary not in _INSIDE:
        raise ValueError(f"boundary = {boundary!r}: must be one of {', '.join(_INSIDE)}")
    sets = {"real": np.asarray(real), "generated": np.asarray(generated)}
    for name, features in sets.items():
        check_features(features, f"{name} features", sets["real"].shape[-1])
        if not 1 <= k < len(features):
            raise ValueError(
                f"k = {k}: must be at least 1 and below {len(features)}, the number of {name} "
                "features"
            )
    real, generated = (features.astype(np.float64) for features in sets.values())
    inside = _INSIDE[boundary]
    real_radii, generated_radii = _radii(real, k), _radii(generated, k)
    balls_around = np.zeros(len(generated), np.int64)
    recalled = np.zeros(len(real), bool)
    covered = np.zeros(len(real), bool)
    for rows, squares in _blocks(real, generated):
        in_real = inside(squares, real_radii[rows, None])
        balls_around += in_real.sum(0)
        covered[rows] = in_real.any(1)
        recalled[rows] = inside(squares, generated_radii).any(1)
    return PrecisionRecall(
        precision=float((balls_around > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls_around.mean() / k),
        coverage=float(covered.mean()),
        k=k,
        boundary=boundary,
        real_count=len(real),
        generated_count=len(generated),
    )


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Returns each feature's squared distance (N,) to its k-th neighbour, itself not counted."""
    radii = np.empty(len(features))
    for rows, squares in _blocks(features, features):
        # Itself is the nearest, exactly: rounding may have left a distance above 0.
        squares[np.arange(len(squares)), np.arange(rows.start, rows.stop)] = 0.0
        radii[rows] = np.partition(squares, k, axis=1)[:, k]
    return radii


def _blocks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields slices of rows of `first` with their squared distances to all of `second`."""
    second_norms = np.sum(second * second, axis=1)
    for start in range(0, len(first), _BLOCK):
        part = first[start : start + _BLOCK]
        squares = np.sum(part * part, axis=1)[:, None] + second_norms - 2.0 * (part @ second.T)
        yield slice(start, start + len(part)), np.maximum(squares, 0.0)

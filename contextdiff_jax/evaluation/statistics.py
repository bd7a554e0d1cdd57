"""Mean and covariance of features, streamed, merged and stored with what they were made of.

Moments are kept in float64 as count, mean and scatter (the sum of outer products of deviations),
which two sets are merged by without cancellation (Chan, Golub & LeVeque 1983).
"""

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.system.array_files import read_arrays
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.finite import all_finite
from contextdiff_jax.system.scalars import read_scalar

_MOST_IMAGES = 10**12


@dataclasses.dataclass(frozen=True)
class FeatureIdentity:
    """What makes features comparable: all four fields must be equal.

    network: e.g. "inception_v3_2015", "clip". layer: of its outputs, e.g. "2048", "768".
    weights: identity of the parameters, "sha256:" and hex digits. protocol: how images became the
    network's input, a name in evaluation/resizing.py.
    """

    network: str
    layer: str
    weights: str
    protocol: str

    def to_json(self) -> dict[str, str]:
        """Returns the four fields."""
        return dataclasses.asdict(self)


class FeatureStatistics:
    """Count, mean and covariance of the features of one set of images.

    identity: of the features. source: which images, for people, e.g. "coco val2014, 30,000". count:
    rows so far. mean: (D,) float64. scatter: (D, D) float64, sum of (f - mean)(f - mean)^T.
    """

    def __init__(self, identity: FeatureIdentity, dimension: int, source: str):
        if dimension < 1:
            raise ValueError(f"dimension = {dimension}: must be at least 1")
        self.identity = identity
        self.source = source
        self.count = 0
        self.mean = np.zeros(dimension)
        self.scatter = np.zeros((dimension, dimension))

    @classmethod
    def of(
        cls, features: np.ndarray, identity: FeatureIdentity, source: str
    ) -> "FeatureStatistics":
        """Returns the statistics of features (N, D) of any float dtype."""
        features = np.asarray(features)
        check_features(features, f"features of {source!r}")
        statistics = cls(identity, features.shape[1], source)
        statistics.update(features)
        return statistics

    @classmethod
    def from_moments(
        cls,
        mean: np.ndarray,
        covariance: np.ndarray,
        count: int,
        identity: FeatureIdentity,
        source: str,
    ) -> "FeatureStatistics":
        """Returns statistics that other tools made: mean (D,), covariance (D, D) with N - 1.

        identity is the caller's word; files of pytorch-fid and clean-fid do not record one.
        """
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (mean.size, mean.size):
            raise ValueError(
                f"mean has shape {mean.shape}, covariance {covariance.shape}; must be (D,), (D, D)"
            )
        if count < 1:
            raise ValueError(f"count = {count}: must be at least 1")
        check_finite(mean[None], f"mean of {source!r}")
        check_finite(covariance, f"covariance of {source!r}")
        statistics = cls(identity, mean.size, source)
        statistics.count = int(count)
        statistics.mean = mean.copy()
        statistics.scatter = covariance * (statistics.count - 1)
        return statistics

    @property
    def dimension(self) -> int:
        """Number of features, D."""
        return self.mean.size

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance (D, D) float64, divided by N - 1; needs two samples."""
        if self.count < 2:
            raise ValueError(f"{self.source!r} has {self.count} samples: a covariance needs 2")
        return self.scatter / (self.count - 1)

    def update(self, features: np.ndarray) -> None:
        """Adds features (N, D) of any float dtype; ValueError where one is not finite."""
        features = np.asarray(features)
        check_features(features, f"features of {self.source!r}", self.dimension)
        if not len(features):
            return
        features = features.astype(np.float64)
        mean = features.mean(0)
        centred = features - mean
        self._merge(len(features), mean, centred.T @ centred)

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds the images of another set of the same features; its source is the caller's care."""
        check_comparable(self, other)
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter = self.scatter + scatter
        self.scatter += np.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def to_json(self) -> dict[str, Any]:
        """Returns identity, source, number of samples and of features: what a result records."""
        return {
            "source": self.source,
            "count": self.count,
            "dimension": self.dimension,
            **self.identity.to_json(),
        }

    def save(self, path: epath.PathLike) -> None:
        """Writes an .npz file, whole or not at all.

        Its arrays `mu` and `sigma` are what pytorch-fid and clean-fid read, too.
        """
        path = epath.Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{str(path)!r}: statistics are stored as .npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        sigma = self.scatter / max(self.count - 1, 1)
        with written_whole(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, mu=self.mean, sigma=sigma, record=np.array(json.dumps(self.to_json())))

    @classmethod
    def load(cls, path: epath.PathLike) -> "FeatureStatistics":
        """Reads what `save` wrote.

        Raises FileNotFoundError, or ValueError where the file is damaged or says nothing about its
        features, as files of other tools do (from_moments takes those).
        """
        path = epath.Path(path)
        if not path.exists():
            raise FileNotFoundError(f"statistics {str(path)!r} do not exist")
        arrays = read_arrays(path, ("mu", "sigma", "record"))
        missing = [key for key in ("mu", "sigma") if key not in arrays]
        if missing:
            raise ValueError(f"{str(path)!r} holds no readable statistics: {missing[0]} is missing")
        if "record" not in arrays:
            raise ValueError(
                f"{str(path)!r} does not record network, layer, weights and protocol of its "
                "features, so nothing can be compared with it"
            )
        try:
            identity, count, source = _read_record(arrays["record"])
            for key in ("mu", "sigma"):
                if arrays[key].dtype.kind != "f":
                    raise ValueError(f"{key} is {arrays[key].dtype}; must be float")
            if arrays["sigma"].ndim == 2 and (arrays["sigma"].diagonal() < 0).any():
                raise ValueError("sigma has negative variances")
            if not count:  # as `save` writes a set that nothing was added to yet
                return cls(identity, arrays["mu"].size, source)
            return cls.from_moments(arrays["mu"], arrays["sigma"], count, identity, source)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} holds no usable statistics: {error}") from error


def _read_record(array: np.ndarray) -> tuple[FeatureIdentity, int, str]:
    try:
        record = json.loads(str(array))
    except RecursionError as error:
        raise ValueError("its record is no JSON object") from error
    fields = [field.name for field in dataclasses.fields(FeatureIdentity)]
    if not isinstance(record, dict):
        raise ValueError("its record is no JSON object")
    missing = [key for key in (*fields, "count", "source") if key not in record]
    if missing:
        raise ValueError(f"it does not record {', '.join(missing)}")
    texts = {key: read_scalar(str, record[key], key) for key in (*fields, "source")}
    return FeatureIdentity(**{key: texts[key] for key in fields}), _count(record), texts["source"]


def _count(record: dict[str, Any]) -> int:
    count = read_scalar(int, record["count"], "count")
    if not 0 <= count <= _MOST_IMAGES:
        raise ValueError(f"count = {count}: must be from 0 to {_MOST_IMAGES:,}")
    return count


def check_comparable(first: FeatureStatistics, second: FeatureStatistics) -> None:
    """Raises ValueError naming the first way in which two sets of features differ."""
    pairs = zip(first.identity.to_json().items(), second.identity.to_json().values(), strict=True)
    facts = [(name, ours, theirs) for (name, ours), theirs in pairs]
    facts.append(("dimension", first.dimension, second.dimension))
    for name, ours, theirs in facts:
        if ours != theirs:
            raise ValueError(
                f"features differ in {name}: {ours!r} for {first.source!r}, {theirs!r} for "
                f"{second.source!r}; only features of one kind can be compared"
            )


def check_finite(features: np.ndarray, what: str) -> None:
    """Raises ValueError saying how many values, in how many rows, are NaN or infinite."""
    if all_finite(features):
        return
    wrong = ~np.isfinite(features)
    rows = int(wrong.any(1).sum())
    raise ValueError(
        f"{what}: {int(wrong.sum())} of {wrong.size} values, in {rows} of {len(wrong)} rows, "
        "are NaN or infinite"
    )


def check_features(features: np.ndarray, what: str, width: int | None = None) -> None:
    """Raises ValueError unless features are float (N, D), D = `width` where given, and finite."""
    fits = features.ndim == 2 and width in (None, features.shape[1])
    if not fits or not np.issubdtype(features.dtype, np.floating):
        raise ValueError(
            f"{what} are {features.dtype} of shape {features.shape}; "
            f"must be float of (N, {'D' if width is None else width})"
        )
    check_finite(features, what)

"""The Inception Score (Salimans et al. 2016) of class logits."""

import dataclasses

import numpy as np
from scipy.special import log_softmax, logsumexp

from contextdiff_jax.evaluation.statistics import check_features

TORCH_FIDELITY_SEED = 2020
ADM_PART = 5000


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """mean, std (ddof 0): of the scores of `splits` parts of `count` images. shuffle_seed: of the
    permutation before splitting, None where images stayed in their order.
    """

    mean: float
    std: float
    count: int
    splits: int
    shuffle_seed: int | None

    def to_json(self) -> dict[str, float | int | None]:
        """Returns all fields."""
        return dataclasses.asdict(self)


def inception_score(
    logits: np.ndarray, splits: int = 10, shuffle_seed: int | None = TORCH_FIDELITY_SEED
) -> InceptionScore:
    """Returns exp of the mean KL(p(y | x) || p(y)), over `splits` parts, in float64.

    Args:
      logits: (N, classes) of any float dtype; the published scores use them without bias.
      splits: number of parts, at most N.
      shuffle_seed: torch-fidelity's order by default, its seed included; None keeps the order.

    Raises:
      ValueError: fewer images than splits, or logits that are NaN or infinite.
    """
    logits = np.asarray(logits)
    check_features(logits, "logits")
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"splits = {splits}: must be 1 to {count}, the number of images")
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(count)]
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    bounds = [index * count // splits for index in range(splits + 1)]
    return _over_parts(log_p, bounds, shuffle_seed)


def adm_inception_score(logits: np.ndarray) -> InceptionScore:
    """Returns the score as ADM's evaluator takes it: parts of 5000 images in their order.

    The last part may be smaller, and counts as much as the others. logits as in `inception_score`.
    """
    logits = np.asarray(logits)
    check_features(logits, "logits")
    if not len(logits):
        raise ValueError("logits are of 0 images: must be of at least 1")
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return _over_parts(log_p, [*range(0, len(logits), ADM_PART), len(logits)], None)


def _over_parts(log_p: np.ndarray, bounds: list[int], shuffle_seed: int | None) -> InceptionScore:
    scores = [_score(log_p[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    mean, std = float(np.mean(scores)), float(np.std(scores))
    return InceptionScore(mean, std, len(log_p), len(scores), shuffle_seed)


def _score(log_p: np.ndarray) -> float:
    log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    divergences = np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1)
    return float(np.exp(divergences.mean()))

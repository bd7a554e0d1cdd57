"""Cosines of CLIP embeddings: image against text, frames against each other.

Tools report different numbers under similar names; here each has its own. Embeddings need not be
normalized; everything is computed in float64.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from contextdiff_jax.evaluation.statistics import check_finite

HESSEL_PREFIX = "A photo depicts "
"""What Hessel et al. 2021 put before every caption."""


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Agreement of N images with N texts.

    mean_cosine: the raw mean, what ContextDiff reports (text alignment). hessel: the mean of
    2.5 max(cos, 0) (Hessel et al. 2021); theirs if texts had HESSEL_PREFIX. torchmetrics: the
    package's clip_score, max(100 mean cos, 0).
    """

    count: int
    mean_cosine: float
    hessel: float
    torchmetrics: float

    def to_json(self) -> dict[str, float]:
        """Returns all fields."""
        return dataclasses.asdict(self)


def with_hessel_prefix(captions: Sequence[str]) -> list[str]:
    """Returns the captions as CLIPScore's authors encode them."""
    return [HESSEL_PREFIX + caption for caption in captions]


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosines (N,) float64 of the rows of two (N, D) arrays.

    Raises ValueError for other shapes, none at all, or rows that are zero, NaN or infinite.
    """
    first, second = _normalized(first, "first"), _normalized(second, "second")
    if first.shape != second.shape:
        raise ValueError(
            f"embeddings of shapes {first.shape} and {second.shape}: must be equal, one pair a row"
        )
    return np.sum(first * second, axis=1)


def clip_score(image_embeddings: np.ndarray, text_embeddings: np.ndarray) -> ClipScore:
    """Returns the scores of N images (N, D), each against its own text (N, D)."""
    cosine = cosines(image_embeddings, text_embeddings)
    mean = float(cosine.mean())
    return ClipScore(
        count=len(cosine),
        mean_cosine=mean,
        hessel=float(2.5 * np.maximum(cosine, 0.0).mean()),
        torchmetrics=max(100.0 * mean, 0.0),
    )


def text_alignment(frame_embeddings: np.ndarray, text_embedding: np.ndarray) -> float:
    """Returns the mean cosine of frames (F, D) with one prompt (D,): ContextDiff's text alignment.

    FateZero's Tem-Con and Fram-Acc are other things, below.
    """
    return float(cosines(frame_embeddings, _repeated(text_embedding, frame_embeddings)).mean())


def frame_consistency(frame_embeddings: np.ndarray) -> float:
    """Returns the mean cosine over all pairs of frames (F, D), F >= 2: ContextDiff's consistency.

    2 / (F (F - 1)) times the sum of cos(f_i, f_j) over i < j.
    """
    frames = _frames(frame_embeddings)
    total = frames.sum(0)
    # |sum f|^2 = F + 2 sum over pairs, for rows of length 1.
    return float((total @ total - np.sum(frames * frames)) / (len(frames) * (len(frames) - 1)))


def fatezero_temporal_consistency(frame_embeddings: np.ndarray) -> float:
    """Returns FateZero's Tem-Con (Qi et al. 2023): the mean cosine of consecutive frames (F, D)."""
    frames = _frames(frame_embeddings)
    return float(np.sum(frames[:-1] * frames[1:], axis=1).mean())


def fatezero_frame_accuracy(
    frame_embeddings: np.ndarray, target_embedding: np.ndarray, source_embedding: np.ndarray
) -> float:
    """Returns FateZero's Fram-Acc: the share of frames closer to the target than to the source.

    Frames (F, D); target and source prompt (D,).
    """
    to_target, to_source = (
        cosines(frame_embeddings, _repeated(text, frame_embeddings))
        for text in (target_embedding, source_embedding)
    )
    return float((to_target > to_source).mean())


def _frames(frame_embeddings: np.ndarray) -> np.ndarray:
    frames = _normalized(frame_embeddings, "frame")
    if len(frames) < 2:
        raise ValueError("1 frame: consistency needs at least 2")
    return frames


def _repeated(text_embedding: np.ndarray, frames: np.ndarray) -> np.ndarray:
    text = np.asarray(text_embedding)
    if text.ndim != 1:
        raise ValueError(f"text embedding has shape {text.shape}; must be (D,), of one prompt")
    return np.broadcast_to(text, (len(frames), text.size))


def _normalized(embeddings: np.ndarray, what: str) -> np.ndarray:
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(
            f"{what} embeddings have shape {embeddings.shape}; must be (N, D), N at least 1"
        )
    check_finite(embeddings, f"{what} embeddings")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not lengths.all():
        zero = int((lengths == 0).sum())
        raise ValueError(f"{what} embeddings: {zero} of {len(lengths)} are zero, without direction")
    return embeddings / lengths

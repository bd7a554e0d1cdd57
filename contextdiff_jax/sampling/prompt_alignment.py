"""Which token of a source prompt each token of an edit's prompt stands for (Hertz et al. 2022).

NumPy on token ids and positions, on the host. All L tokens count, padding too.
"""

from collections.abc import Sequence

import numpy as np

_GAP, _MATCH, _MISMATCH = 0, 1, -1
_LEFT, _UP, _DIAGONAL = range(3)


def align(
    source: Sequence[int], target: Sequence[int], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source's token that each of `length` tokens of the target is, and whether one is.

    source, target: token ids from the first to the last real one. Needleman-Wunsch; of equally good
    ways a token that is new goes before one that is left out, that before a pair. mapper: int32
    (length,), 0 where there is none. alpha: float32 (length,), 1 where there is one; past the
    target each token stands for the one at its place.
    """
    ways = _ways(source, target)
    mapper, alpha = np.arange(length, dtype=np.int32), np.ones(length, np.float32)
    i, j = len(source), len(target)
    while i or j:
        way = ways[i, j] if i and j else (_UP if i else _LEFT)
        if way == _UP:
            i -= 1
            continue
        j -= 1
        if way == _DIAGONAL:
            i -= 1
        mapper[j], alpha[j] = (i, 1) if way == _DIAGONAL else (0, 0)
    return mapper, alpha


def _ways(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    scores = np.zeros((len(source) + 1, len(target) + 1), int)
    scores[0], scores[:, 0] = np.arange(len(target) + 1) * _GAP, np.arange(len(source) + 1) * _GAP
    ways = np.zeros_like(scores)
    for i, own in enumerate(source, 1):
        for j, other in enumerate(target, 1):
            equal = _MATCH if own == other else _MISMATCH
            options = (scores[i, j - 1] + _GAP, scores[i - 1, j] + _GAP, scores[i - 1, j - 1])
            options = (*options[:2], options[2] + equal)
            scores[i, j] = max(options)
            ways[i, j] = options.index(scores[i, j])
    return ways


def refinement(
    source: Sequence[int], target: Sequence[int], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns P (length, length), a one-hot column for each token of `align`, and its alpha."""
    mapper, alpha = align(source, target, length)
    projection = np.zeros((length, length), np.float32)
    projection[mapper, np.arange(length)] = 1
    return projection, alpha


def replacement(
    source: Sequence[Sequence[int]],
    target: Sequence[Sequence[int]],
    changed: Sequence[bool],
    length: int,
) -> np.ndarray:
    """Returns P (length, length) that hands on what the source's words are attended by.

    source, target: of each word, in order, the positions of its tokens; as many words. changed:
    whether a word is another one. Of a changed word equally many tokens are paired; else each
    token of the source is shared equally by all of the target.
    """
    projection = np.zeros((length, length), np.float32)
    swapped = {
        own[0]: (list(own), list(other))
        for own, other, differs in zip(source, target, changed, strict=True)
        if differs
    }
    i = j = 0
    while i < length and j < length:
        if i not in swapped:
            projection[i, j] = 1
            i, j = i + 1, j + 1
            continue
        own, other = swapped[i]
        if len(own) == len(other):
            projection[own, other] = 1
        else:
            projection[np.ix_(own, other)] = 1 / len(other)
        i, j = i + len(own), j + len(other)
    return projection

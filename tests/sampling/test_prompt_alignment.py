"""Alignment of prompts, against tables made by hand from the rules of prompt-to-prompt."""

import numpy as np
import pytest

from contextdiff_jax.sampling.prompt_alignment import align, refinement, replacement

BOS, EOS = 90, 91


@pytest.mark.parametrize(
    ("source", "target", "mapper", "alpha"),
    [
        # "a cat" -> "a furry cat": the new word has no source, the rest moves on.
        ([1, 2], [1, 7, 2], [0, 1, 0, 2, 3, 5, 6, 7], [1, 1, 0, 1, 1, 1, 1, 1]),
        # "a cat" -> "a dog": a mismatch is a word that is new beside one that is left out.
        ([1, 2], [1, 5], [0, 1, 0, 3, 4, 5, 6, 7], [1, 1, 0, 1, 1, 1, 1, 1]),
        # "a red cat" -> "a cat": tokens behind the gap read further right.
        ([1, 3, 2], [1, 2], [0, 1, 3, 4, 4, 5, 6, 7], [1] * 8),
        # "a a" -> "a": of equal ways, going back from the end, up goes before diagonal.
        ([1, 1], [1], [0, 1, 3, 3, 4, 5, 6, 7], [1] * 8),
    ],
)
def test_alignment(source, target, mapper, alpha):
    given = [[BOS, *ids, EOS] for ids in (source, target)]
    got = align(*given, 8)
    # Past the target's end each token stands for the one at its place.
    mapper = [*mapper[: len(given[1])], *range(len(given[1]), 8)]
    np.testing.assert_array_equal(got[1], alpha)
    np.testing.assert_array_equal(got[0][got[1] > 0], np.array(mapper)[got[1] > 0])
    projection, again = refinement(*given, 8)
    maps = np.random.default_rng(0).random((3, 8))
    np.testing.assert_array_equal(again, got[1])
    np.testing.assert_allclose(maps @ projection, maps[:, got[0]], rtol=1e-6)


def test_replacement_of_one_token_by_one():
    words = [[1], [2], [3]]
    got = replacement(words, words, [False, True, False], 6)
    np.testing.assert_array_equal(got, np.eye(6))


def test_replacement_of_one_token_by_two_and_what_is_behind():
    """ "a cat runs" -> "a hippo runs", whose hippo has two tokens: half each, and all behind it
    moves on by one; the last place of the source is left over."""
    got = replacement([[1], [2], [3]], [[1], [2, 3], [4]], [False, True, False], 6)
    expected = np.zeros((6, 6))
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 2] = expected[2, 3] = 0.5
    expected[3, 4] = expected[4, 5] = 1
    np.testing.assert_array_equal(got, expected)


def test_replacement_of_two_tokens_by_one():
    got = replacement([[1, 2], [3]], [[1], [2]], [True, False], 5)
    expected = np.zeros((5, 5))
    expected[0, 0] = 1
    expected[1, 1] = expected[2, 1] = 1
    expected[3, 2] = expected[4, 3] = 1
    np.testing.assert_array_equal(got, expected)

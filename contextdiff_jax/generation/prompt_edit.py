"""From two prompts and the words of a config to what attention takes over, token by token."""

import dataclasses
import math
import string
from collections.abc import Sequence

import numpy as np

from contextdiff_jax.encoders.tokenizers import Tokenizer
from contextdiff_jax.generation.editing_config import FusionConfig
from contextdiff_jax.sampling.prompt_alignment import refinement, replacement


@dataclasses.dataclass(frozen=True)
class PromptEdit:
    """Arrays of the L tokens, float32: P (L, L), alpha, eq; and in which steps what holds.

    weight (n, L), self_on (n,): of each fused step. source_words, edit_words (L,): 1 for the
    tokens of the blend words.
    """

    projection: np.ndarray
    alpha: np.ndarray
    equalizer: np.ndarray
    weight: np.ndarray
    self_on: np.ndarray
    source_words: np.ndarray
    edit_words: np.ndarray


@dataclasses.dataclass(frozen=True)
class Words:
    """A prompt's words, split at spaces, each with the positions of its tokens.

    ids: of the prompt's tokens up to the last real one. cut: the words that the tokenizer cuts off.
    """

    prompt: str
    words: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    ids: tuple[int, ...]
    cut: tuple[str, ...] = ()

    @property
    def folded(self) -> tuple[str, ...]:
        """The words without case and punctuation."""
        return tuple(map(_folded, self.words))

    def has(self, asked: str) -> bool:
        """Whether the prompt has a word, or each of several."""
        return all(_folded(part) in self.folded for part in asked.split() or [asked])

    def tokens(self, asked: str, where: str) -> list[int]:
        """Returns the positions of a word, or of each of several; case and punctuation are one.

        Raises ValueError naming the key `where` for a word that the prompt does not have.
        """
        found = []
        for part in asked.split() or [asked]:
            same = [
                place
                for word, places in zip(self.words, self.positions, strict=True)
                if _folded(word) == _folded(part)
                for place in places
            ]
            if not same and _folded(part) in map(_folded, self.cut):
                raise ValueError(
                    f"{where} has {part!r}, which is cut off: must be among the first "
                    f"{len(self.words)} words of the prompt {self.prompt!r}, which is too long"
                )
            if not same:
                raise ValueError(
                    f"{where} has {part!r}, which is not in the prompt {self.prompt!r}: must be "
                    f"one of {', '.join(dict.fromkeys(self.folded))}"
                )
            found += same
        return found

    def marked(self, asked: Sequence[str], length: int, where: str) -> np.ndarray:
        """Returns 1 for the tokens of words, float32 (length,)."""
        marks = np.zeros(length, np.float32)
        for word in asked:
            marks[self.tokens(word, where)] = 1
        return marks


def words_of(tokenizer: Tokenizer, prompt: str) -> Words:
    """Returns a prompt's words; those that the tokenizer cuts off are left out."""
    words = prompt.split()
    [ids], [mask] = tokenizer([prompt])
    _, masks = tokenizer(words or [""])
    last = int(mask.sum()) - 1  # the end token's place
    start, kept, positions = 1, [], []
    for word, length in zip(words, masks.sum(1) - 2, strict=False):
        places = tuple(range(start, start + int(length)))
        if places and places[-1] < last:
            kept.append(word)
            positions.append(places)
        start += int(length)
    cut = tuple(words[len(kept) :])
    return Words(prompt, tuple(kept), tuple(positions), tuple(ids[: last + 1].tolist()), cut)


def prompt_edit(
    tokenizer: Tokenizer, source: str, target: str, config: FusionConfig, steps: int
) -> PromptEdit:
    """Returns what a config asks for of two prompts and so many steps.

    Raises ValueError for a word that its prompt does not have, and for the mode "replace" where
    the prompts have different numbers of words.
    """
    own, other, length = (
        words_of(tokenizer, source),
        words_of(tokenizer, target),
        tokenizer.max_length,
    )
    projection, alpha = _projection(own, other, config.mode, length)
    equalizer = np.ones(length, np.float32)
    for word, value in zip(config.equalizer_words, config.equalizer_values, strict=True):
        equalizer[other.tokens(word, "fusion.equalizer_words")] = value
    until = np.full(length, config.cross_until)
    for word, share in zip(config.cross_words, config.cross_words_until, strict=True):
        until[other.tokens(word, "fusion.cross_words")] = share
    numbers = np.arange(config.fused_steps(steps))
    first, last = (math.floor(part * steps) for part in (config.self_from, config.self_until))
    return PromptEdit(
        projection,
        alpha,
        equalizer,
        weight=(numbers[:, None] < np.floor(until * (steps + 1))).astype(np.float32),
        self_on=(first <= numbers) & (numbers < last),
        source_words=own.marked(config.blend_words, length, "fusion.blend_words"),
        edit_words=other.marked(config.blend_edit_words, length, "fusion.blend_edit_words"),
    )


def _projection(own: Words, other: Words, mode: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    if mode == "refine":
        return refinement(own.ids, other.ids, length)
    if len(own.words) != len(other.words):
        raise ValueError(
            f"fusion.mode = 'replace': the prompts have {len(own.words)} and {len(other.words)} "
            "words, must have equally many; or use 'refine'"
        )
    changed = [mine != theirs for mine, theirs in zip(own.words, other.words, strict=True)]
    projection = replacement(own.positions, other.positions, changed, length)
    return projection, np.ones(length, np.float32)


def _folded(word: str) -> str:
    return word.casefold().strip(string.punctuation) or word

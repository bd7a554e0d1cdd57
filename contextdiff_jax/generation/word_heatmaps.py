"""Heatmaps of an edit: how much every position of every frame attends to chosen words.

NN/heatmaps/00_cat.png       frames, and the U-Net's attention to "cat" over them; a mean of steps
NN/heatmaps/00_cat_adapter.png    the adapter's, where there is one
NN/heatmaps/00_cat.webp      the same as an animation, likewise
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.encoders.tokenizers import Tokenizer
from contextdiff_jax.generation.prompt_edit import words_of
from contextdiff_jax.spaces.clips import beside, heated, strip, write_webp
from contextdiff_jax.spaces.pictures import write_png

FOLDER = "heatmaps"


def check_heatmaps(tokenizer: Tokenizer, words: Sequence[str], prompts: Sequence[str]) -> None:
    """Raises ValueError for a word that no prompt has."""
    known = [words_of(tokenizer, prompt) for prompt in prompts]
    for word in words:
        if not any(each.has(word) for each in known):
            raise ValueError(
                f"config.heatmaps has {word!r}, which is in no prompt: must be one of "
                f"{', '.join(dict.fromkeys(name for each in known for name in each.folded))}"
            )


def marked_words(
    tokenizer: Tokenizer, words: Sequence[str], prompt: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns those of the words that a prompt has, and 1 for their tokens, float32 (W, L)."""
    known = words_of(tokenizer, prompt)
    there = tuple(word for word in words if known.has(word))
    marks = [known.marked([word], tokenizer.max_length, "config.heatmaps") for word in there]
    return there, np.stack(marks) if marks else np.zeros((0, tokenizer.max_length), np.float32)


def write_heatmaps(
    place: epath.Path,
    frames: np.ndarray,
    words: Sequence[str],
    heat: Mapping[str, np.ndarray],
    fps: float,
) -> dict[str, Any]:
    """Writes the heatmaps of an edit's frames; returns what its record says of them.

    heat: (F, m, n, W) each, of "unet" and "adapter".
    """
    folder = place / FOLDER
    record: dict[str, Any] = {}
    for number, word in enumerate(words):
        name = f"{number:02d}_{re.sub(r'[^a-z0-9]+', '', word.lower()) or 'word'}"
        for kind, maps in heat.items():
            file = name if kind == "unet" else f"{name}_{kind}"
            own = maps[..., number]
            over = heated(frames, own)
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{file}.png", strip(frames, over))
            write_webp(folder / f"{file}.webp", beside(frames, over), fps)
            scale = {"least": float(own.min()), "largest": float(own.max())}
            record.setdefault(word, {})[kind] = {"file": f"{FOLDER}/{file}.png", **scale}
    return record

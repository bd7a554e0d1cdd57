"""Heat maps of cross-attention over pictures, word by word (ContextDiff, figures 8 and 9)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from contextdiff_jax.evaluation import plots

_LEAST_LETTERS = 3  # of the words shown when none are chosen
_SHADE = 0.62  # of the heat over the picture


def words_of(prompt: str) -> list[str]:
    """Returns the different words of a prompt in order, short ones ("a", "of") left out."""
    words = re.findall(r"\w+", prompt)
    return list(dict.fromkeys(w for w in words if len(w) >= _LEAST_LETTERS)) or words


def word_tokens(prompt: str, word: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Returns the places of the tokens that stand for a word (or phrase) of a prompt, any case.

    spans: which part of the prompt each token stands for. Empty where the prompt has no such word,
    or its tokens are cut off.
    """
    found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.I)]
    return [
        place
        for place, (start, end) in enumerate(spans)
        if any(start < last and first < end for first, last in found)
    ]


def word_map(maps: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Returns the share of attention (rows, columns) that goes to the tokens of one word.

    maps: attention (rows, columns, L) of image tokens to text tokens; sums to 1 over L.
    """
    return maps[..., list(tokens)].sum(-1)


def draw(picture: np.ndarray, maps: Mapping[str, np.ndarray], path: epath.PathLike) -> None:
    """Writes the picture (H, W, 3) uint8 and, beside it, each word's map (rows, columns) over it.

    Each map has its own scale from its least to its largest share, which stand below it.
    """
    axes = plots.panels(1 + len(maps), columns=1 + min(len(maps), 5), size=(1.75, 2.1))
    height, width = picture.shape[:2]
    for panel in axes:
        panel.set_axis_off()
    axes[0].imshow(picture, interpolation="nearest")
    plots.label(axes[0], "picture")
    for panel, (word, shares) in zip(axes[1:], maps.items(), strict=True):
        panel.imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        panel.imshow(shares, cmap="inferno", alpha=_SHADE, extent=extent, interpolation="bicubic")
        plots.label(panel, word)
        span = f"{shares.min():.2g} – {shares.max():.2g}"
        panel.text(0.5, -0.03, span, transform=panel.transAxes, ha="center", va="top", fontsize=8)
    plots.save(axes[0], path)

"""Drawn pictures with their captions, as galleries of a report."""

from collections.abc import Sequence

import numpy as np

from contextdiff_jax.conditions.requests import one_line
from contextdiff_jax.evaluation.results import Gallery
from contextdiff_jax.generation.generate import Pictures

_SHOWN = 24  # pictures of a sample grid


def sample_gallery(pictures: Pictures, stage: str, folder: str, title: str = "Samples") -> Gallery:
    """Returns the first pictures with their captions; folder: theirs, in the output folder."""
    return chosen_gallery(pictures, stage, folder, range(min(_SHOWN, len(pictures))), title)


def chosen_gallery(
    pictures: Pictures,
    stage: str,
    folder: str,
    places: Sequence[int],
    title: str,
    agreement: np.ndarray | None = None,
) -> Gallery:
    """Returns the pictures at these places with their captions, and agreement (N,) if given."""
    items = []
    for place in places:
        caption = one_line(pictures.requests[place])
        if agreement is not None:
            caption = f"{agreement[place]:.3f}  {caption}"
        items.append((f"{folder}/{stage}/{pictures.path(stage, place).name}", caption))
    return Gallery(title, tuple(items))

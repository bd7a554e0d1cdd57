"""A filter of one's own: which pictures may be handed out. None of this project's own is here."""

from collections.abc import Callable

import numpy as np
from absl import logging

Shown = Callable[[np.ndarray], np.ndarray]
"""Is given pictures (b, H, W, 3) in [-1, 1]; returns which may be handed out, (b,) bool."""


def filtered(images: np.ndarray, shown: Shown | None) -> np.ndarray:
    """Returns the pictures, black where they may not be shown; a warning counts those.

    Raises ValueError where the filter returns something else.
    """
    if shown is None:
        return images
    allowed = np.asarray(shown(images))
    if allowed.shape != images.shape[:1] or allowed.dtype != bool:
        raise ValueError(
            f"the filter of pictures returned {allowed.dtype} {allowed.shape}: must be bool "
            f"({len(images)},)"
        )
    if not allowed.all():
        logging.warning("%d of %d pictures are filtered out", (~allowed).sum(), len(images))
    return np.where(allowed[:, None, None, None], images, np.float32(-1))

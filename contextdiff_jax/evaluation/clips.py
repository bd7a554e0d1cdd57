"""Measures of an edited clip beside CLIP's (similarity.py): what stays, what flickers, and scenes.

Frames are uint8 (F, H, W, 3); a mask is bool (F, H, W), True where it counts.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from contextdiff_jax.data.scenes_clips import MovingScene
from contextdiff_jax.evaluation import scenes_checker


def masked_psnr(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Returns the PSNR in dB over the masked pixels of all frames; infinite where they are equal.

    Raises ValueError for shapes that differ, and for an empty mask.
    """
    difference = _difference(edited, source)[_checked(mask, source)]
    error = float(np.mean(np.square(difference)))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def flicker(edited: np.ndarray, source: np.ndarray, mask: np.ndarray) -> float:
    """Returns how much more the edit changes from frame to frame than the source, in grey levels.

    RMS of (e_i+1 - e_i) - (s_i+1 - s_i) where both frames are masked; 0 for an edit that is the
    source plus a picture that stays. Raises ValueError as masked_psnr does, and for one frame.
    """
    if len(edited) < 2:
        raise ValueError("1 frame: flicker needs at least 2")
    mask = _checked(mask, source)
    both = mask[1:] & mask[:-1]
    if not both.any():
        raise ValueError("the mask has no pixel in two frames in a row")
    changes = np.diff(_difference(edited, source), axis=0)
    return float(np.sqrt(np.mean(np.square(changes[both]))))


def warp_error(edited: np.ndarray, flow: np.ndarray, known: np.ndarray) -> float:
    """Returns how much a clip differs from its frames before, moved along a flow, in grey levels.

    RMS of e_i+1 - e_i at the place where that was, interpolated linearly (Lai et al. 2018 have the
    square of it, of colours in 0..1). flow: offsets (x, y) in pixels from each position to where it
    was a frame before, (F - 1, H, W, 2). known: bool (F - 1, H, W), True where it counts.

    Raises ValueError for shapes that differ, and where nothing counts.
    """
    if len(edited) < 2:
        raise ValueError("1 frame: a warp error needs at least 2")
    known = _checked(known, edited[1:])
    if flow.shape != (*known.shape, 2):
        raise ValueError(f"a flow of shape {flow.shape}: must be {(*known.shape, 2)}")
    rows, columns = np.indices(known.shape[1:], float)
    errors = []
    for before, after, offsets, counts in zip(edited, edited[1:], flow, known, strict=False):
        places = [rows + offsets[..., 1], columns + offsets[..., 0]]
        moved = [
            ndimage.map_coordinates(channel.astype(float), places, order=1, mode="nearest")
            for channel in np.moveaxis(before, -1, 0)
        ]
        errors.append((after - np.stack(moved, axis=-1))[counts])
    return float(np.sqrt(np.mean(np.square(np.concatenate(errors)))))


def outside(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Returns where no frame's mask is near: outside their union, dilated by so many pixels."""
    union = mask.any(axis=0)
    if pixels:
        union = ndimage.binary_dilation(union, np.ones((3, 3)), iterations=pixels)
    return np.broadcast_to(~union, mask.shape)


@dataclasses.dataclass(frozen=True)
class SceneScores:
    """Shares of frames in which the moving shape is seen with its colour, its shape, and both.

    centre: the mean distance of its centre from where it should be, in pixels, over the frames in
    which a shape is seen; None where none is.
    """

    colour: float
    shape: float
    both: float
    centre: float | None


def scene_scores(edited: np.ndarray, target: MovingScene) -> SceneScores:
    """Returns what the checker of scenes reads of an edited clip, against the exact edit."""
    side, found, errors = edited.shape[2], [], []
    for number, frame in enumerate(edited):
        x, y = target.centre(number)
        seen = scenes_checker.read(frame)
        if not seen:
            found.append((False, False))
            continue
        near = min(seen, key=lambda thing: (thing.x - x) ** 2 + (thing.y - y) ** 2)
        errors.append(side * float(np.hypot(near.x - x, near.y - y)))
        found.append((near.colour == target.moving.colour, near.shape == target.moving.shape))
    right = np.array(found, float)
    both = float(right.all(axis=1).mean())
    centre = float(np.mean(errors)) if errors else None
    return SceneScores(float(right[:, 0].mean()), float(right[:, 1].mean()), both, centre)


def _difference(edited: np.ndarray, source: np.ndarray) -> np.ndarray:
    if edited.shape != source.shape:
        raise ValueError(f"clips of shapes {edited.shape} and {source.shape}: must be equal")
    return edited.astype(np.float64) - source.astype(np.float64)


def _checked(mask: np.ndarray, source: np.ndarray) -> np.ndarray:
    if mask.shape != source.shape[:3]:
        raise ValueError(f"the mask has shape {mask.shape}: must be {source.shape[:3]}")
    if not mask.any():
        raise ValueError("the mask is empty")
    return mask

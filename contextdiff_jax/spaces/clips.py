"""Clips as files: frames, a lossless animation, a film, and two clips beside each other."""

import numpy as np
from etils import epath
from PIL import Image

from contextdiff_jax.spaces.pictures import write_png
from contextdiff_jax.system.atomic_write import written_whole

_GAP = 4  # pixels between clips
_SHADE = 0.6  # of heat over a frame
# Of red, green and blue one trapezoid, shifted: dark blue, blue, green, red.
_SHIFTS = np.array([-0.25, 0.0, 0.25])
_STOPS, _LEVELS = (0.0, 0.125, 0.375, 0.625, 0.875, 1.0), (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)


def write_frames(folder: epath.Path, frames: np.ndarray) -> None:
    """Writes uint8 (F, H, W, 3) as NNN.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(frames):
        write_png(folder / f"{number:03d}.png", pixels)


def write_webp(path: epath.Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (F, H, W, 3) as a lossless animated WebP that repeats."""
    _animate(path, frames, fps, "WEBP", lossless=True, method=3)


def write_preview(path: epath.Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (F, H, W, 3) as a small animated WebP that repeats; not to be measured."""
    _animate(path, frames, fps, "WEBP", quality=85, method=3)


def write_gif(path: epath.Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (F, H, W, 3) as a GIF that repeats: 256 colours a frame."""
    _animate(path, frames, fps, "GIF", disposal=2)


def beside(*clips: np.ndarray) -> np.ndarray:
    """Returns equal clips, uint8 (F, H, W, 3), next to each other on white."""
    gap = np.full((*clips[0].shape[:2], _GAP, 3), 255, np.uint8)
    parts = [part for clip in clips for part in (clip, gap)]
    return np.concatenate(parts[:-1], axis=2)


def strip(*clips: np.ndarray) -> np.ndarray:
    """Returns the frames of clips as one picture, uint8: a row for each clip."""
    rows = [np.concatenate(list(clip), axis=1) for clip in clips]
    return np.concatenate(rows, axis=0)


def heated(frames: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns frames uint8 (F, H, W, 3), grey, with heat (F, m, n) over them: blue to red.

    The heat has one scale for all frames, from its least to its largest value.
    """
    low, high = float(heat.min()), float(heat.max())
    height, width = frames.shape[1:3]
    share = ((heat - low) / (high - low or 1.0)).astype(np.float32)
    cubic = Image.Resampling.BICUBIC
    large = [np.asarray(Image.fromarray(each).resize((width, height), cubic)) for each in share]
    ramp = np.interp(np.clip(large, 0, 1)[..., None] + _SHIFTS, _STOPS, _LEVELS)
    grey = frames.mean(-1, keepdims=True)
    return np.round((1 - _SHADE) * grey + _SHADE * 255 * ramp).astype(np.uint8)


def _animate(path: epath.Path, frames: np.ndarray, fps: float, kind: str, **options) -> None:
    images = [Image.fromarray(pixels) for pixels in frames]
    with written_whole(path) as unfinished:
        images[0].save(
            unfinished,
            kind,
            save_all=True,
            append_images=images[1:],
            duration=round(1000 / fps),
            loop=0,
            **options,
        )

"""Antialiased drawing of the scenes' shapes, from signed distances (pixels)."""

import functools
from collections.abc import Callable

import numpy as np

PALETTE = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (30, 90, 230),
    "yellow": (250, 205, 30),
    "purple": (130, 20, 140),
    "cyan": (40, 190, 215),
    "pink": (255, 110, 180),
    "black": (30, 30, 30),
}
"""sRGB. Every two differ by 44 or more in CIELAB, and by 39 or more from the backgrounds."""

REACH = 1.12  # no shape extends further than this many radii from its centre, in x or y


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) + np.abs(y) - REACH) * np.float32(0.5**0.5)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Corners (0, -1), (-1.1, 1), (1.1, 1); y points down."""
    slope = np.float32((1.1**2 + 2**2) ** -0.5)
    return np.maximum(y - 1, (2 * np.abs(x) - 1.1 * (y + 1)) * slope)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.08, y - 0.38), np.maximum(x - 0.38, y - 1.08))


# Signed distance to the outline of the shape of radius 1, negative inside.
_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}

# Left, top, right, bottom of the shape of radius 1, y downwards.
_EXTENTS = {
    "circle": (-1.0, -1.0, 1.0, 1.0),
    "square": (-0.88, -0.88, 0.88, 0.88),
    "triangle": (-1.1, -1.0, 1.1, 1.0),
    "diamond": (-REACH, -REACH, REACH, REACH),
    "cross": (-1.08, -1.08, 1.08, 1.08),
}


def box_of(shape: str, x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    """Returns the corners x0, y0, x1, y1 of the smallest box around a shape, in its units."""
    left, top, right, bottom = (radius * value for value in _EXTENTS[shape])
    return x + left, y + top, x + right, y + bottom


def coverage(
    shape: str, centre_x: float, centre_y: float, radius: float, columns: range, rows: range
) -> np.ndarray:
    """Returns the share of each pixel that the shape covers, float32 (len(rows), len(columns)).

    All lengths in pixels; pixel i spans [i, i + 1).
    """
    # NumPy adds a Python float in float32; np.arange(float) would be float64.
    scale = 1 / radius
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + (0.5 - centre_x)) * scale
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + (0.5 - centre_y)) * scale
    distance = _DISTANCES[shape](x[None, :], y[:, None])
    return np.clip(0.5 - distance * np.float32(radius), 0, 1)


def draw(
    image: np.ndarray,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    rgb: tuple[int, int, int],
) -> None:
    """Draws one shape on float32 (side, side, 3) in place; centre and radius in sides."""
    side = len(image)
    x, y, r = centre[0] * side, centre[1] * side, radius * side
    reach = REACH * r + 1
    columns = range(max(0, int(x - reach)), min(side, int(x + reach) + 1))
    rows = range(max(0, int(y - reach)), min(side, int(y + reach) + 1))
    alpha = coverage(shape, x, y, r, columns, rows)[..., None]
    region = image[rows.start : rows.stop, columns.start : columns.stop]
    region += alpha * (np.array(rgb, np.float32) - region)


@functools.cache
def moments(shape: str) -> tuple[float, float]:
    """Returns area and centroid height (y, downwards) of the shape of radius 1 at the origin."""
    side, radius = 300, 100.0
    alpha = coverage(shape, side / 2, side / 2, radius, range(side), range(side))
    heights = (np.arange(side) + 0.5 - side / 2) / radius
    area = float(alpha.sum())
    return area / radius**2, float((alpha.sum(axis=1) * heights).sum() / area)

"""Reads colour, shape, place and size back from pictures of scenes, and compares with captions.

No learned part: the plain background is the median of the border, objects are connected regions
that differ from it, a colour is the nearest of the palette in CIELAB, and a shape is the one
whose antialiased drawing at the region's own size and place is most like it. The cosine of the
coverages is used, not the overlap: at 16 px a slight blur makes a diamond overlap a circle best.
"""

import dataclasses
import re

import numpy as np
from scipy import ndimage

from contextdiff_jax.data import scenes
from contextdiff_jax.data.config import COLOURS, SHAPES
from contextdiff_jax.data.scenes_drawing import PALETTE, coverage, moments

_DIFFERENT = 50.0  # sRGB distance (0..442) of a pixel that is not background
_LEAST_AREA = 0.02  # of the picture; the smallest object, a small triangle, has 0.056
_MOST_BORDER = 0.35  # of the border pixels may belong to objects
_DARKEST_BACKGROUND = 170
_NEAR_COLOUR = 38.0  # CIELAB distance; the closest two of the palette differ by 44
_CORE = 0.8  # the pixels from this quantile of the distance to the background give the colour
_SCALES = (0.85, 0.9, 0.95, 1.0, 1.05)  # radii tried, times the one that gives the region's area
_BLURS = (0.0, 0.4, 0.7)  # pixels; tried too, where they matter for the shape:
_BLURRED_BELOW = 8.0  # pixels of radius
_SHAPE_FIT = 0.9  # least cosine of the coverage with the drawing's


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object read from a picture.

    colour, shape: a name, or None where nothing known is near. x, y, radius in sides, y
    downwards. fit: overlap with the drawing of the shape, 0..1.
    """

    colour: str | None
    shape: str | None
    x: float
    y: float
    radius: float
    fit: float


@dataclasses.dataclass(frozen=True)
class Described:
    """What a caption says: (colour, shape) of each object, and size, cell, relation if said."""

    things: tuple[tuple[str, str], ...]
    size: str | None = None
    cell: str | None = None
    relation: str | None = None


_WORDS = {"c": "|".join(COLOURS), "s": "|".join(SHAPES)}
_SINGLE = re.compile(
    rf"an? (?:({'|'.join(scenes.SIZES)}) )?({_WORDS['c']}) ({_WORDS['s']})"
    rf"(?: ({'|'.join(scenes.CELLS)}))?"
)
_PAIR = re.compile(
    rf"an? ({_WORDS['c']}) ({_WORDS['s']}) ({'|'.join(scenes.RELATIONS)}) "
    rf"an? ({_WORDS['c']}) ({_WORDS['s']})"
)


def parse_caption(caption: str) -> Described:
    """Reads a caption of `scenes`. Raises ValueError for any other sentence."""
    text = " ".join(caption.lower().split())
    if single := _SINGLE.fullmatch(text):
        size, colour, shape, cell = single.groups()
        return Described(((colour, shape),), size=size, cell=cell)
    if pair := _PAIR.fullmatch(text):
        colour, shape, relation, other_colour, other_shape = pair.groups()
        return Described(((colour, shape), (other_colour, other_shape)), relation=relation)
    raise ValueError(
        f"caption {caption!r}: must be like 'a small red circle at the top left' or "
        f"'a red circle left of a blue square', with {', '.join(COLOURS)} and {', '.join(SHAPES)}"
    )


def check(image: np.ndarray, caption: str) -> dict[str, bool]:
    """Compares a picture, uint8 (side, side, 3), with a caption of `scenes`.

    Returns colour, shape, position, size (True where the caption does not say) and all. A
    picture with another number of objects than the caption is wrong in everything. Raises
    ValueError for a caption of another kind.
    """
    described = parse_caption(caption)
    seen = read(image)
    names = ("colour", "shape", "position", "size")
    if len(seen) != len(described.things):
        return dict.fromkeys((*names, "all"), False)
    orders = [seen, seen[::-1]] if len(seen) == 2 else [seen]
    # Of two equally good assignments the one with the right colours says more.
    best = max((_compare(order, described) for order in orders), key=lambda r: (sum(r), r))
    return dict(zip(names, best, strict=True)) | {"all": all(best)}


def _compare(seen: list[Seen], described: Described) -> tuple[bool, bool, bool, bool]:
    pairs = list(zip(seen, described.things, strict=True))
    colour = all(thing.colour == said[0] for thing, said in pairs)
    shape = all(thing.shape == said[1] for thing, said in pairs)
    if described.relation is not None:
        position = _relation(*seen) == described.relation
    else:
        position = described.cell in (None, _cell(seen[0]))
    size = scenes.SIZES[seen[0].radius >= scenes.SIZE_BORDER]
    return colour, shape, position, described.size in (None, size)


def _relation(first: Seen, second: Seen) -> str:
    across, down = second.x - first.x, second.y - first.y
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _cell(thing: Seen) -> str:
    column, row = (int(np.searchsorted(scenes.CELL_BORDERS, v)) for v in (thing.x, thing.y))
    return scenes.CELLS[3 * row + column]


def read(image: np.ndarray) -> list[Seen]:
    """Returns the objects of a picture, uint8 (side, side, 3), side >= 16, the largest first.

    None where the background is not plain and light.
    """
    side = image.shape[0] if image.ndim else 0
    if image.dtype != np.uint8 or image.shape != (side, side, 3) or side < 16:
        raise ValueError(f"picture {image.dtype} {image.shape}: must be uint8, square, >= 16, RGB")
    pixels = image.astype(np.float32)
    background = background_of(pixels)
    foreign = np.linalg.norm(_border(pixels) - background, axis=1) > _DIFFERENT
    if background.min() < _DARKEST_BACKGROUND or foreign.mean() > _MOST_BORDER:
        return []
    labels = _regions(pixels - background, background)
    areas = np.bincount(labels.ravel())[1:]
    order = [int(i) + 1 for i in np.argsort(-areas) if areas[i] >= _LEAST_AREA * labels.size]
    return [_read_object(pixels, background, labels, label) for label in order]


def background_of(pixels: np.ndarray) -> np.ndarray:
    """Returns the median of the border, (3,), of a picture (side, side, 3)."""
    return np.median(_border(pixels), axis=0)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def _regions(difference: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Labels connected regions of one colour: int (H, W), 0 where background is over half.

    Every pixel is taken as a mixture of the background and one colour of the palette, the one
    that leaves the smallest remainder, so that neighbours which nearly touch stay apart.
    """
    toward = np.array([PALETTE[name] for name in COLOURS], np.float32) - background
    share = np.clip(difference @ (toward / np.sum(toward**2, axis=1, keepdims=True)).T, 0, 1)
    remainder = np.linalg.norm(difference[:, :, None] - share[..., None] * toward, axis=-1)
    colour = np.argmin(remainder, axis=-1)
    covered = np.take_along_axis(share, colour[..., None], axis=-1)[..., 0] > 0.5
    labels = np.zeros(colour.shape, int)
    for number in np.unique(colour[covered]):
        found, count = ndimage.label(covered & (colour == number))
        labels += np.where(found > 0, found + labels.max(), 0)
    return labels


def _read_object(
    pixels: np.ndarray, background: np.ndarray, labels: np.ndarray, label: int
) -> Seen:
    side = len(pixels)
    mask = labels == label
    # The blurred rim belongs to the object too, where it is not another's.
    rim = ndimage.binary_dilation(mask, iterations=2)
    near = rim & ((labels == 0) | mask)
    distance = np.linalg.norm(pixels - background, axis=2)
    core = mask & (distance >= np.quantile(distance[mask], _CORE))
    rgb = np.median(pixels[core], axis=0)
    toward = (rgb - background) / np.sum((rgb - background) ** 2)
    box = ndimage.find_objects(near.astype(int))[0]
    alpha = np.clip((pixels[box] - background) @ toward, 0, 1) * near[box]
    fits = {shape: _fit(alpha, shape) for shape in SHAPES}
    shape = max(fits, key=lambda name: fits[name][0])
    fit, x, y, radius = fits[shape]
    centre = (x + box[1].start) / side, (y + box[0].start) / side
    return Seen(
        _nearest_colour(rgb), shape if fit >= _SHAPE_FIT else None, *centre, radius / side, fit
    )


def _fit(alpha: np.ndarray, shape: str) -> tuple[float, float, float, float]:
    """Draws the shape at the region's centroid: best cosine, centre and radius (pixels)."""
    area, low = moments(shape)
    total = alpha.sum()
    rows, columns = (np.arange(n) + 0.5 for n in alpha.shape)
    x = float((alpha.sum(axis=0) @ columns) / total)
    centroid = float((alpha.sum(axis=1) @ rows) / total)
    by_area = float(np.sqrt(total / area))
    best = (0.0, x, centroid, by_area)
    for radius in (by_area * scale for scale in _SCALES):
        y = centroid - low * radius
        sharp = coverage(shape, x, y, radius, range(alpha.shape[1]), range(alpha.shape[0]))
        for blur in _BLURS if radius < _BLURRED_BELOW else (0.0,):
            drawn = ndimage.gaussian_filter(sharp, blur) if blur else sharp
            best = max(best, (_cosine(alpha, drawn), x, y, radius))
    return best


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    product = np.vdot(first, second)
    return float(product / np.sqrt(np.vdot(first, first) * np.vdot(second, second)))


def _nearest_colour(rgb: np.ndarray) -> str | None:
    distances = {
        name: np.linalg.norm(_lab(rgb) - _lab(np.array(value))) for name, value in PALETTE.items()
    }
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= _NEAR_COLOUR else None


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 (3,) to CIELAB, D65 (IEC 61966-2-1, CIE 15)."""
    value = np.asarray(rgb, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    x, y, z = (_XYZ @ linear) / _XYZ.sum(axis=1)
    fx, fy, fz = (np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)

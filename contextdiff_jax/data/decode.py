"""Bytes from the wild to square uint8 RGB pictures and clean captions, or a named reason."""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

import numpy as np
from PIL import Image

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""PIL's decoders that a picture from the wild may reach.

Not among them: EPS and WMF, which start other programs or the system's drawing; ICO, ICNS and AVIF,
in which the picture inside may be larger than the size that the header shows; rare ones.
"""

IMAGE_UNUSABLE = "no usable image"
IMAGE_MISSING = "no usable image: missing"
IMAGE_EMPTY = "no usable image: empty file"
IMAGE_HTML = "no usable image: a web page"
IMAGE_UNKNOWN = "no usable image: unknown format"
IMAGE_TRUNCATED = "no usable image: truncated"
IMAGE_BROKEN = "no usable image: broken"
IMAGE_HUGE = "no usable image: more pixels than max_pixels"
IMAGE_LONG = "no usable image: a side above 65,535 pixels"
IMAGE_LARGE_FILE = "no usable image: file too large"
IMAGE_SCANS = "no usable image: more than 100 scans"
IMAGE_SMALL = "no usable image: smaller than min_side"
CAPTION_MISSING = "no usable caption: missing"
CAPTION_BLANK = "no usable caption: blank"
CAPTION_NOT_TEXT = "no usable caption: not text"
CAPTION_LONG = "no usable caption: more than 100,000 characters"
LATIN_1 = "caption was not UTF-8, read as Latin-1"
SURROGATES = "caption held half characters, dropped"
BLANK_DROPPED = "blank captions dropped from a list"
BAD_EXIF = "unreadable EXIF, orientation taken as upright"

_WHITE = (255, 255, 255)
_BAND = 1 << 20  # pixels converted to RGB at a time
_ENOUGH = 7
# JPEG's and GIF's own limit. The table of a resizing takes 48 bytes for each pixel of the side.
_LONGEST_SIDE = 65_535
_MOST_SCANS = 100  # as libtiff and Skia have it; encoders write about 10
_SCAN, _END = 0xDA, 0xD9
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15
_MOST_CHARACTERS = 100_000  # of a caption; a tokenizer takes 0.2 s for them, and keeps some hundred
_DEEPEST_CAPTION = 16  # lists and mappings around a caption; Python's own limit is near 1,000
# EXIF tag 0x0112: what undoes each orientation (EXIF 2.3, table 6).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = {_UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}  # width and height
# PIL warns of what max_pixels decides about.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_sample(data: bytes, key: str, config: DataConfig) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns `decode_image`'s picture and notes, of the size and with the limits of a config."""
    return decode_image(
        *(data, key, config.resolution, config.resize_mode, config.min_side, config.max_pixels)
    )


def decode_image(
    data: bytes,
    key: str,
    resolution: int,
    resize_mode: str = "center_crop",
    min_side: int = 1,
    max_pixels: int = DataConfig.max_pixels,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the picture, uint8 (resolution, resolution, 3), and notes on repairs.

    Transparency is composited on white, EXIF orientation is undone, 16-bit and CMYK are reduced
    to 8-bit RGB, of an animation the first picture is taken. Raises DamagedSample(key, reason):
    sizes and a JPEG's scans are checked before a pixel is decoded.

    A JPEG comes at the scale of `reduce`: its pixels are those of the same picture as PNG within
    0.5 grey levels RMS, and the very same ones where it is decoded whole.
    """
    image = _open(data, key, max_pixels)
    if min(image.size) < min_side:
        raise DamagedSample(key, IMAGE_SMALL)
    rgb, turn, notes, shown = _read(image, key, resolution)
    square = to_square(rgb, resolution, resize_mode, shown)
    return np.array(square if turn is None else square.transpose(turn)), notes


def decode_upright(data: bytes, key: str, max_pixels: int = DataConfig.max_pixels) -> np.ndarray:
    """Returns the whole picture, uint8 (H, W, 3), as decode_image repairs it; raises as it does."""
    rgb, turn, *_ = _read(_open(data, key, max_pixels), key)
    return np.array(rgb if turn is None else rgb.transpose(turn))


def _read(image: Image.Image, key: str, resolution: int | None = None) -> tuple:
    """Returns the pixels, what turns them upright or None, notes, and what `reduce` does.

    resolution: that `reduce` may reduce for; None leaves the picture whole.
    """
    try:
        shown = None if resolution is None else reduce(image, resolution)
        image.load()
        turn, notes = _orientation(image)
        return _to_rgb(image), turn, notes, shown
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder stumbles on, it is the sample's fault
        truncated = "truncated" in str(error)
        raise DamagedSample(key, IMAGE_TRUNCATED if truncated else IMAGE_BROKEN) from error


def open_image(file: bytes | IO[bytes], formats: Sequence[str] = FORMATS) -> Image.Image:
    """Returns PIL's image of a file in one of `formats`, its pixels still to be read.

    Raises what PIL raises: UnidentifiedImageError (an OSError) for another format.
    """
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=formats)


def most_bytes(max_pixels: int) -> int:
    """Returns the size above which no file is read: 16-bit RGBA, uncompressed, and 64 MiB."""
    return 8 * max_pixels + (1 << 26)


def _open(data: bytes, key: str, max_pixels: int) -> Image.Image:
    """Returns the image with its pixels still to be read, and few enough."""
    if not data:
        raise DamagedSample(key, IMAGE_EMPTY)
    if len(data) > most_bytes(max_pixels):
        raise DamagedSample(key, IMAGE_LARGE_FILE)
    try:
        image = open_image(data)
        pixels = _pixels(image)
    except Image.DecompressionBombError as error:
        raise DamagedSample(key, IMAGE_HUGE) from error
    except MemoryError:
        raise
    except Exception as error:
        start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        page = start.startswith((b"<!doctype", b"<html"))
        raise DamagedSample(key, IMAGE_HTML if page else IMAGE_UNKNOWN) from error
    if pixels > max_pixels:
        raise DamagedSample(key, IMAGE_HUGE)
    if max(image.size) > _LONGEST_SIDE:
        raise DamagedSample(key, IMAGE_LONG)
    if data.startswith(b"\xff\xd8") and _too_many_scans(data):
        raise DamagedSample(key, IMAGE_SCANS)
    return image


def _pixels(image: Image.Image) -> int:
    """Returns how many pixels decoding holds: the picture's, or those of a larger TIFF tile."""
    width, height = image.size
    tags = getattr(image, "tag_v2", {})
    return max(width, tags.get(_TILE_WIDTH, 0)) * max(height, tags.get(_TILE_LENGTH, 0))


def _too_many_scans(data: bytes) -> bool:
    """Whether a JPEG's first picture has so many scans that decoding would take minutes.

    Each scan goes over all pixels, and 33 bytes make one.
    """
    if data.count(bytes((0xFF, _SCAN))) <= _MOST_SCANS:
        return False
    # What follows the picture, or lies in a segment, may hold the same bytes: walk the markers.
    scans, place = 0, 2
    while (place := data.find(b"\xff", place)) >= 0 and place + 1 < len(data):
        marker = data[place + 1]
        if marker == _END:
            break
        if marker == 0xFF:  # padding
            place += 1
        elif marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # no segment follows
            place += 2
        else:
            scans += marker == _SCAN
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return scans > _MOST_SCANS


def reduce(image: Image.Image, resolution: int) -> tuple[float, float]:
    """Has a JPEG decoded at 1/2 or 1/4 that is 14 or 28 times `resolution` or more on both sides.

    Returns width and height of the picture in pixels as decoded; of the last row and column only a
    part may belong to it.

    On 111 photographs of 640x480 the squares then differ from those of whole decoding by 0.3 to
    0.5 grey levels RMS (the worst picture by 1.4). Where it began at 8 times `resolution` they
    would by 0.7, at 4 times by 2, and at 1/8 by more than 0.5 whatever the size. What it saves: of
    640x480 at 16 or 32 px a third of the time, of larger pictures most of it.
    """
    width, height = image.size
    for scale in (4, 2):
        if min(width, height) >= scale * _ENOUGH * resolution:
            image.draft(None, (width // scale, height // scale))
            break
    if image.size == (width, height):  # small, or no JPEG
        return width, height
    return width / scale, height / scale


def _orientation(image: Image.Image) -> tuple[Image.Transpose | None, tuple[str, ...]]:
    """Returns what undoes the EXIF orientation. Broken EXIF does not cost the image, but is noted.

    The image is loaded: EXIF may come after the pixels.
    """
    try:
        return _UPRIGHT.get(image.getexif().get(0x0112, 1)), ()
    except MemoryError:
        raise
    except Exception:
        return None, (BAD_EXIF,)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as 8-bit RGB, transparency composited on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    sixteen = image.mode.startswith("I") and (image.mode != "I" or image.getextrema()[1] > 255)
    rgb = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):  # in bands, for what lies between takes memory
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_band_to_rgb(band, sixteen), (0, top))
    return rgb


def _band_to_rgb(band: Image.Image, sixteen: bool) -> Image.Image:
    if band.mode.startswith("I"):
        # PIL's own conversion clips at 255 instead of scaling.
        values = np.asarray(band)
        scaled = values >> 8 if sixteen else values
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")
    if band.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in band.info:
        rgba = band.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return band.convert("RGB")


def upright_size(data: bytes) -> tuple[int, int]:
    """Returns width and height, orientation undone, of what `decode_image` has decoded."""
    image = open_image(data)
    width, height = image.size
    turn, _ = _orientation(image)
    return (height, width) if turn in _SWAPPING else (width, height)


def to_square(
    image: Image.Image, side: int, mode: str, shown: tuple[float, float] | None = None
) -> Image.Image:
    """Returns the RGB image resampled (antialiased Lanczos) to side x side.

    mode: "border" pads the shorter side with white, "center_crop" cuts the longer one,
    "stretch" ignores the aspect ratio. shown: width and height from the top left corner that are
    the picture; all of the image by default.
    """
    width, height = shown or image.size
    if mode == "border":
        scale = side / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image
        if inner != image.size:
            small = image.resize(inner, Image.Resampling.LANCZOS, box=(0, 0, width, height))
        if inner == (side, side):
            return small
        square = Image.new("RGB", (side, side), _WHITE)
        square.paste(small, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return square
    if mode == "center_crop":
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, left + edge, top + edge)
    elif mode == "stretch":
        box = (0, 0, width, height)
    else:
        raise ValueError(f"resize_mode = {mode!r}: must be one of border, center_crop, stretch")
    if image.size == (side, side):
        return image
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box)


def decode_captions(values: object, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the usable captions, stripped, and notes on repairs.

    values: str, bytes, a (possibly nested) iterable of them, or a mapping with them under "text".
    Bytes that are not UTF-8 are read as Latin-1, which cannot fail, and noted. Raises
    DamagedSample when none is left, or one is longer than a caption can be.
    """
    raw = list(_flatten(values, key))
    if not raw:
        raise DamagedSample(key, CAPTION_MISSING)
    notes: set[str] = set()
    captions = []
    for value in raw:
        text, note = _decode_text(value)
        notes.update(note)
        if len(text) > _MOST_CHARACTERS:
            raise DamagedSample(key, CAPTION_LONG)
        if text:
            captions.append(text)
    if not captions:
        raise DamagedSample(key, CAPTION_BLANK)
    if len(captions) < len(raw):
        notes.add(BLANK_DROPPED)
    return tuple(captions), tuple(sorted(notes))


def _flatten(values: object, key: str, depth: int = 0) -> Iterable[str | bytes]:
    if values is None:
        return
    if isinstance(values, (str, bytes)):
        yield values
    elif depth >= _DEEPEST_CAPTION:
        raise DamagedSample(key, CAPTION_NOT_TEXT)
    elif isinstance(values, Mapping) and "text" in values:
        yield from _flatten(values["text"], key, depth + 1)  # coco: {"id": ..., "text": ...}
    elif isinstance(values, Iterable) and not isinstance(values, Mapping):
        for value in values:
            yield from _flatten(value, key, depth + 1)
    else:
        raise DamagedSample(key, CAPTION_NOT_TEXT)


def _decode_text(value: str | bytes) -> tuple[str, tuple[str, ...]]:
    if isinstance(value, str):
        # JSON may hold lone surrogates, which no tokenizer can encode.
        clean = value.encode("utf-8", "ignore").decode("utf-8")
        return clean.strip(), (SURROGATES,) if clean != value else ()
    try:
        return value.decode("utf-8-sig").strip(), ()
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(), (LATIN_1,)


def caption_values(row: Mapping[str, Any], fields: Sequence[str]) -> list[Any]:
    """Returns what `row` holds under `fields` ("captions/text" for nested ones), present or not.

    Without fields: the first of captions, caption, text that is there.
    """
    if not fields:
        present = [field for field in ("captions", "caption", "text") if field in row]
        fields = present[:1]
    return [_walk(row, field.split("/")) for field in fields]


def _walk(value: Any, names: Sequence[str]) -> Any:
    if not names:
        return value
    if isinstance(value, Mapping):
        return _walk(value.get(names[0]), names[1:])
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_walk(item, names) for item in value]
    return None

"""Bytes from the wild to square uint8 RGB pictures and clean captions, or a named reason."""

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from contextdiff_jax.data.example import DamagedSample

IMAGE_MISSING = "no usable image: missing"
IMAGE_EMPTY = "no usable image: empty file"
IMAGE_HTML = "no usable image: a web page"
IMAGE_UNKNOWN = "no usable image: unknown format"
IMAGE_TRUNCATED = "no usable image: truncated"
IMAGE_BROKEN = "no usable image: broken"
IMAGE_HUGE = "no usable image: more pixels than PIL accepts"
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
_MOST_CHARACTERS = 100_000  # of a caption; a tokenizer takes 0.2 s for them, and keeps some hundred
_DEEPEST_CAPTION = 16  # lists and mappings around a caption; Python's own limit is near 1,000
# What PIL's decoders raise on broken input, besides its own DecompressionBombError: in 170,000
# trials on damaged files of 15 formats OSError, ValueError, SyntaxError, TypeError, RuntimeError
# and struct.error, and by its source the others too. One that escaped would end a run.
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError),
    *(EOFError, LookupError, OverflowError, struct.error, zlib.error),
)
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


def decode_image(
    data: bytes, key: str, resolution: int, resize_mode: str = "center_crop", min_side: int = 1
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the picture, uint8 (resolution, resolution, 3), and notes on repairs.

    Transparency is composited on white, EXIF orientation is undone, 16-bit and CMYK are reduced
    to 8-bit RGB. Raises DamagedSample(key, reason).
    """
    image = _open(data, key, 2 * resolution, min_side)
    try:
        upright, notes = _upright(image)
        rgb = _to_rgb(upright)
    except Image.DecompressionBombError as error:
        raise DamagedSample(key, IMAGE_HUGE) from error
    except _DECODER_ERRORS as error:
        truncated = "truncated" in str(error)
        raise DamagedSample(key, IMAGE_TRUNCATED if truncated else IMAGE_BROKEN) from error
    return np.array(to_square(rgb, resolution, resize_mode)), notes


def _open(data: bytes, key: str, enough: int, min_side: int) -> Image.Image:
    """Returns the image with its pixels still to be read; both sides >= `enough` if it had them."""
    if not data:
        raise DamagedSample(key, IMAGE_EMPTY)
    try:
        image = Image.open(io.BytesIO(data))
        small = min(image.size) < min_side
        # JPEG only: decodes at 1/2, 1/4 or 1/8 as long as both sides stay >= enough.
        image.draft(None, (enough, enough))
    except Image.DecompressionBombError as error:
        raise DamagedSample(key, IMAGE_HUGE) from error
    except _DECODER_ERRORS as error:
        start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        page = start.startswith((b"<!doctype", b"<html"))
        raise DamagedSample(key, IMAGE_HTML if page else IMAGE_UNKNOWN) from error
    if small:
        raise DamagedSample(key, IMAGE_SMALL)
    return image


def _upright(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Undoes the EXIF orientation. Broken EXIF does not cost the image, but is noted."""
    image.load()
    try:
        orientation = image.getexif().get(0x0112, 1)
    except _DECODER_ERRORS:
        return image, (BAD_EXIF,)
    turn = _UPRIGHT.get(orientation)
    return (image if turn is None else image.transpose(turn)), ()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image as 8-bit RGB, transparency composited on white."""
    if image.mode.startswith("I"):
        # PIL's own conversion clips at 255 instead of scaling.
        values = np.asarray(image).astype(np.int64)
        scaled = values >> 8 if image.mode != "I" or values.max() > 255 else values
        return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (*_WHITE, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_square(image: Image.Image, side: int, mode: str) -> Image.Image:
    """Returns the RGB image resampled (antialiased Lanczos) to side x side.

    mode: "border" pads the shorter side with white, "center_crop" cuts the longer one,
    "stretch" ignores the aspect ratio.
    """
    width, height = image.size
    if mode == "border":
        scale = side / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = image if inner == image.size else image.resize(inner, Image.Resampling.LANCZOS)
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
    notes = set()
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

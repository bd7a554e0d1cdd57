"""Decoding against PIL's own conversions, and every named reason."""

import io
import json
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, features
from scipy import ndimage

from contextdiff_jax.data import decode
from contextdiff_jax.data.example import DamagedSample

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    """A picture without fine detail, so that JPEG and resampling hardly change it."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [255 * x, 255 * y, 128 + 100 * np.sin(3 * (x + y))]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def test_rgb_at_its_own_size_is_untouched():
    pixels = RNG.integers(256, size=(16, 16, 3)).astype(np.uint8)
    picture, notes = decode.decode_image(encoded(Image.fromarray(pixels), "PNG"), "k", 16)
    assert picture.dtype == np.uint8 and picture.flags.writeable
    np.testing.assert_array_equal(picture, pixels)
    assert notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    image = smooth(32, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    picture, _ = decode.decode_image(data, "k", 32)
    np.testing.assert_array_equal(picture, np.asarray(expected))


def test_transparency_is_composited_on_white():
    pixels = RNG.integers(256, size=(8, 8, 4)).astype(np.uint8)
    picture, _ = decode.decode_image(encoded(Image.fromarray(pixels), "PNG"), "k", 8)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(picture - expected).max() <= 1


def test_palette_with_a_transparent_colour_and_grey_with_alpha():
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.paste(1, (0, 0, 4, 8))
    picture, _ = decode.decode_image(encoded(palette, "PNG", transparency=0), "k", 8)
    assert picture[0, 0].tolist() == [200, 100, 0]
    assert picture[0, 7].tolist() == [255, 255, 255]
    grey = Image.new("LA", (8, 8), (40, 0))
    assert (decode.decode_image(encoded(grey, "PNG"), "k", 8)[0] == 255).all()


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    picture, _ = decode.decode_image(encoded(Image.fromarray(values), "PNG"), "k", 8)
    np.testing.assert_array_equal(picture[..., 0], values >> 8)
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr", "1"])
def test_other_modes_become_rgb(mode):
    image = smooth(16, 16).convert(mode)
    data = encoded(image, "TIFF")
    picture, _ = decode.decode_image(data, "k", 16)
    np.testing.assert_array_equal(picture, np.asarray(image.convert("RGB")))


def test_broken_exif_is_noted_and_does_not_cost_the_image():
    data = encoded(smooth(16, 16), "PNG", exif=b"Exif\0\0no TIFF header")
    picture, notes = decode.decode_image(data, "k", 16)
    np.testing.assert_array_equal(picture, np.asarray(smooth(16, 16)))
    assert notes == (decode.BAD_EXIF,)


def rms(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean((one.astype(float) - other) ** 2)))


def as_png(jpeg: bytes) -> bytes:
    """The same pixels, decoded whole, without loss; the EXIF data too."""
    image = Image.open(io.BytesIO(jpeg))
    return encoded(image, "PNG", exif=image.getexif())


@pytest.mark.parametrize("mode", ["center_crop", "border", "stretch"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_jpeg_decoded_at_reduced_size_matches_whole_decoding(mode, orientation):
    """Of sides that 2 and 4 do not divide the last pixels are not stretched, whichever way up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for scale, width, height in ((2, 263, 345), (4, 461, 590)):
        texture = ndimage.gaussian_filter(RNG.normal(size=(height, width, 3)), (24, 24, 0))
        pixels = np.clip(128 + 40 * texture / texture.std(), 0, 255).astype(np.uint8)
        jpeg = encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0, exif=exif)
        image = decode.open_image(jpeg)
        decode.reduce(image, 16)
        assert image.size == (-(-width // scale), -(-height // scale))
        picture, _ = decode.decode_image(jpeg, "k", 16, mode)
        whole, _ = decode.decode_image(as_png(jpeg), "k", 16, mode)
        assert whole.std() > 20
        assert rms(picture, whole) < 0.5


def test_jpeg_of_photographs_gives_the_pixels_of_their_png(shared_data):
    files = sorted(shared_data("photos").glob("*.jpg"))[::4]
    differences = []
    for file in files:
        jpeg, png = file.read_bytes(), as_png(file.read_bytes())
        pairs = [decode.decode_image(data, "k", 16)[0] for data in (jpeg, png)]
        differences.append(rms(*pairs))
        for side in (64, 128):
            pairs = [decode.decode_image(data, "k", side)[0] for data in (jpeg, png)]
            np.testing.assert_array_equal(*pairs)
    assert 0 < np.sqrt(np.mean(np.square(differences))) < 0.5


def test_resize_modes():
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    image.paste((200, 0, 0), (0, 0, 10, 20))
    image.paste((0, 200, 0), (30, 0, 40, 20))
    data = encoded(image, "PNG")
    border = decode.decode_image(data, "k", 40, "border")[0]
    np.testing.assert_array_equal(border[10:30], np.asarray(image))
    assert (border[:10] == 255).all() and (border[30:] == 255).all()
    crop = decode.decode_image(data, "k", 20, "center_crop")[0]
    np.testing.assert_array_equal(crop, np.asarray(image)[:, 10:30])
    stretched = decode.decode_image(data, "k", 20, "stretch")[0]
    assert stretched[0, 0].tolist() == [200, 0, 0] and stretched[-1, -1].tolist() == [0, 200, 0]
    with pytest.raises(ValueError, match="resize_mode = 'crop'"):
        decode.decode_image(data, "k", 20, "crop")


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    picture, _ = decode.decode_image(encoded(Image.fromarray(stripes), "PNG"), "k", 8)
    assert np.abs(picture.astype(int) - 127).max() < 8


def damaged_reason(data: bytes, **options) -> str:
    with pytest.raises(DamagedSample) as caught:
        decode.decode_image(data, "shard/key", 16, **options)
    assert caught.value.key == "shard/key"
    return caught.value.reason


def test_every_damage_has_its_reason(monkeypatch):
    jpeg, png = encoded(smooth(256, 256), "JPEG"), encoded(smooth(64, 64), "PNG")
    assert damaged_reason(b"") == decode.IMAGE_EMPTY
    assert damaged_reason(jpeg[: len(jpeg) // 2]) == decode.IMAGE_TRUNCATED
    assert damaged_reason(png[: len(png) // 2]) == decode.IMAGE_TRUNCATED
    assert damaged_reason(b"\n <!DOCTYPE html><html></html>") == decode.IMAGE_HTML
    assert damaged_reason(b"<html><body>404") == decode.IMAGE_HTML
    assert damaged_reason(b"some text, not an image") == decode.IMAGE_UNKNOWN
    assert damaged_reason(jpeg[:30]) in (decode.IMAGE_UNKNOWN, decode.IMAGE_BROKEN)
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    assert damaged_reason(bytes(broken)) == decode.IMAGE_BROKEN
    assert damaged_reason(png, min_side=65) == decode.IMAGE_SMALL
    assert decode.decode_image(png, "k", 16, min_side=64)[0].shape == (16, 16, 3)
    floats = Image.fromarray(np.zeros((8, 8), np.float32))
    assert damaged_reason(encoded(floats, "TIFF")) == decode.IMAGE_BROKEN
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert damaged_reason(png) == decode.IMAGE_HUGE


def test_only_listed_formats_reach_their_decoders(monkeypatch):
    """PIL starts Ghostscript for EPS, and a size in ICO, ICNS or AVIF need not be the picture's."""

    def start(*args, **options):
        raise AssertionError("another program is started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", start)
    image = smooth(32, 32)
    for kind in ("EPS", "ICO", "ICNS", "TGA", "PPM", *["AVIF"] * features.check("avif")):
        assert damaged_reason(encoded(image, kind)) == decode.IMAGE_UNKNOWN, kind
    for kind in decode.FORMATS:
        assert decode.decode_image(encoded(image, kind), "k", 16)[0].shape == (16, 16, 3)


def test_pictures_are_opened_in_one_place():
    package = pathlib.Path(decode.__file__).parent.parent
    users = [path.name for path in package.rglob("*.py") if "Image.open(" in path.read_text()]
    assert users == ["decode.py"]


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_pixels_are_counted_before_they_are_decoded(kind, monkeypatch):
    still, frames = smooth(40, 20), [smooth(40, 20)] * 3
    files = [encoded(still, kind)]
    if kind in ("GIF", "WEBP", "TIFF", "PNG"):  # of several pictures only the first counts
        files.append(encoded(still, kind, save_all=True, append_images=frames))
    for data in files:
        assert decode.decode_image(data, "k", 16, max_pixels=800)[0].shape == (16, 16, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    for data in files:
        assert damaged_reason(data, max_pixels=799) == decode.IMAGE_HUGE


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey TIFF (6.0, section 15) of one deflated tile."""
    pixels = zlib.compress(bytes(tile * tile))
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    values |= {324: 8, 325: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    head = struct.pack("<4sI", b"II*\0", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(values)) + entries + bytes(4)


def test_what_decoding_takes_is_bounded_whatever_the_size_shown(monkeypatch):
    assert decode.decode_image(tiled_tiff(16, 64), "k", 8, max_pixels=4096)[0].shape == (8, 8, 3)
    assert damaged_reason(tiled_tiff(16, 64), max_pixels=4095) == decode.IMAGE_HUGE
    assert damaged_reason(encoded(Image.new("L", (65536, 1)), "PNG")) == decode.IMAGE_LONG
    png = encoded(smooth(64, 64), "PNG")
    monkeypatch.setattr(decode, "most_bytes", lambda pixels: len(png) - 1)
    assert damaged_reason(png) == decode.IMAGE_LARGE_FILE


def test_jpeg_of_very_many_scans():
    """What follows the end of the picture is no scan, whatever it holds."""
    jpeg = encoded(smooth(64, 64).convert("L"), "JPEG", progressive=True)
    *_, last = jpeg[:-2].partition(b"\xff\xda")[2].split(b"\xff\xda")
    scan, begun = b"\xff\xda" + last, jpeg.count(b"\xff\xda")
    many = jpeg[:-2] + (100 - begun) * scan
    picture, _ = decode.decode_image(many + b"\xff\xd9" + 200 * scan, "k", 16)
    assert picture.shape == (16, 16, 3)
    assert damaged_reason(many + scan + b"\xff\xd9") == decode.IMAGE_SCANS
    comment = b"\xff\xfe\x00\x04\xff\xd9"  # which ends nothing
    assert damaged_reason(many + comment + scan + b"\xff\xd9") == decode.IMAGE_SCANS


def test_memory_that_runs_out_is_not_the_samples_fault(monkeypatch):
    def load(image):
        raise MemoryError

    data = encoded(smooth(32, 32), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(MemoryError):
        decode.decode_image(data, "k", 16)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "I;16"])
def test_conversion_in_bands_is_that_of_the_whole(mode, monkeypatch):
    image = smooth(24, 24).convert("RGBA" if mode == "RGBA" else "L")
    options = {"transparency": 3} if mode == "P" else {}
    image = (
        image
        if mode == "RGBA"
        else image.convert("I").convert(mode)
        if mode == "I;16"
        else (image.convert(mode))
    )
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG", **options)
    whole, _ = decode.decode_image(data, "k", 24)
    monkeypatch.setattr(decode, "_BAND", 24 * 7)
    np.testing.assert_array_equal(decode.decode_image(data, "k", 24)[0], whole)


def test_random_damage_never_escapes_the_named_reasons():
    """Whatever bytes a crawl brings, the only exception is DamagedSample."""
    sources = [encoded(smooth(48, 48), kind) for kind in decode.FORMATS]
    outcomes = {"fine": 0, "damaged": 0}
    for trial in range(400):
        data = bytearray(sources[trial % len(sources)])
        for position in RNG.integers(len(data), size=RNG.integers(1, 6)):
            data[position] = RNG.integers(256)
        try:
            decode.decode_image(bytes(data), "k", 16)
            outcomes["fine"] += 1
        except DamagedSample:
            outcomes["damaged"] += 1
    assert min(outcomes.values()) > 20


def test_captions():
    assert decode.decode_captions(b"  a cat\n", "k") == (("a cat",), ())
    assert decode.decode_captions(b"\xef\xbb\xbfa cat", "k") == (("a cat",), ())
    assert decode.decode_captions("caf\u00e9", "k") == (("caf\u00e9",), ())
    assert decode.decode_captions(b"caf\xe9", "k") == (("caf\u00e9",), (decode.LATIN_1,))
    assert decode.decode_captions(["a", "  ", b"b"], "k") == (("a", "b"), (decode.BLANK_DROPPED,))
    halved = json.loads('"\\ud83d cat"')
    assert decode.decode_captions(halved, "k") == (("cat",), (decode.SURROGATES,))
    assert decode.decode_captions([{"id": 1, "text": "a"}, {"id": 2, "text": "b"}], "k")[0] == (
        "a",
        "b",
    )


def nested(levels: int):
    """A caption in so many lists and mappings."""
    value = "caption"
    for level in range(levels):
        value = [value] if level % 2 else {"text": value}
    return value


def test_captions_up_to_the_limits():
    assert decode.decode_captions(nested(16), "k")[0] == ("caption",)
    assert decode.decode_captions("w" * 100_000, "k")[0] == ("w" * 100_000,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, decode.CAPTION_MISSING),
        ([], decode.CAPTION_MISSING),
        ([None], decode.CAPTION_MISSING),
        (b"", decode.CAPTION_BLANK),
        (" \t\r\n\u00a0", decode.CAPTION_BLANK),
        (["", " "], decode.CAPTION_BLANK),
        (3, decode.CAPTION_NOT_TEXT),
        ({"id": 3}, decode.CAPTION_NOT_TEXT),
        (nested(17), decode.CAPTION_NOT_TEXT),
        (nested(50_000), decode.CAPTION_NOT_TEXT),
        ("w" * 100_001, decode.CAPTION_LONG),
        (["short", b"w" * 100_001], decode.CAPTION_LONG),
    ],
)
def test_unusable_captions(value, reason):
    with pytest.raises(DamagedSample) as caught:
        decode.decode_captions(value, "k")
    assert caught.value.reason == reason


def test_caption_fields():
    row = {"text": "t", "caption": "c", "alt": ["x", "y"], "nested": {"text": ["n", "m"]}}
    assert decode.caption_values(row, ()) == ["c"]
    assert decode.caption_values(row, ("alt", "text")) == [["x", "y"], "t"]
    assert decode.caption_values(row, ("nested/text",)) == [["n", "m"]]
    assert decode.caption_values({"a": [{"b": "1"}, {"b": "2"}]}, ("a/b",)) == [["1", "2"]]
    assert decode.caption_values(row, ("missing",)) == [None]
    assert decode.caption_values({}, ()) == []

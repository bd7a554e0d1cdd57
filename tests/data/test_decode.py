"""Decoding against PIL's own conversions, and every named reason."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps, features
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


def test_jpeg_decoded_at_reduced_size_matches_full_decoding():
    """PIL's draft mode saves time, and must leave detail as fine as the result can show."""
    texture = ndimage.gaussian_filter(RNG.normal(size=(480, 640, 3)), (4, 4, 0))
    pixels = np.clip(128 + 60 * texture / texture.std(), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    picture, _ = decode.decode_image(encoded(image, "JPEG", quality=95), "k", 64)
    crop = image.crop((80, 0, 560, 480)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.asarray(crop).std() > 30
    assert np.abs(picture.astype(int) - np.asarray(crop)).mean() < 1.5


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


def test_random_damage_never_escapes_the_named_reasons():
    """Whatever bytes a crawl brings, the only exception is DamagedSample."""
    kinds = ["JPEG", "PNG", "GIF", "WEBP", "BMP"] + ["AVIF"] * features.check("avif")
    sources = [encoded(smooth(48, 48), kind) for kind in kinds]
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

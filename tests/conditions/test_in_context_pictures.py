"""Context and query: tokens against a loop, what is missing, files that are no pictures."""

import dataclasses
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.conditions.context_images import ContextImages
from contextdiff_jax.conditions.picture_files import read_picture
from contextdiff_jax.conditions.query_image import QueryImage
from contextdiff_jax.conditions.requests import check_requests
from contextdiff_jax.conditions.text import Text

RNG = np.random.default_rng(2)
SIDE, MOST = 6, 3
KERNEL = RNG.normal(size=(3, 5)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Stands for CLIP: a token for each row of the picture, not linear in it."""

    identity = "of rows"
    width = 5

    def tokens(self, params, images):
        return jnp.tanh(images.mean(axis=2) @ params)


FROZEN = {"of rows": KERNEL}


def tokens_of(picture):
    """The stand-in's tokens of one picture (SIDE, SIDE, 3) in [-1, 1], in float64."""
    return np.tanh(picture.mean(axis=1) @ KERNEL.astype(np.float64))


def context(**changes):
    return ContextImages(MOST, SIDE, encoder=Encoder(), **changes)


def drawn(*counts):
    """A batch with so many context pictures in each example; others transparent."""
    pictures = RNG.integers(0, 256, (len(counts), SIDE, SIDE, MOST, 4), dtype=np.uint8)
    pictures[..., 3] = 255
    for example, count in enumerate(counts):
        pictures[example, :, :, count:] = 0
    return pictures


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_tokens_are_combined_as_a_loop_does(combine, floor):
    counts = (1, 2, 3, 0)
    batch = drawn(*counts)
    got = np.asarray(context(combine=combine, floor=floor).tokens(FROZEN, jnp.asarray(batch)))
    for example, count in enumerate(counts):
        total = np.zeros((SIDE, 5))
        for k in range(count):
            picture = batch[example, :, :, k, :3] / 127.5 - 1
            if floor:
                spread = max(np.sqrt(np.mean((picture - picture.mean()) ** 2)), floor)
                picture = (picture - picture.mean()) / spread
            total += tokens_of(picture)
        if not count:
            total = tokens_of(np.full((SIDE, SIDE, 3), -1.0))  # a black one stands for none
        expected = total / max(count, 1) if combine == "mean" else total
        np.testing.assert_allclose(got[example], expected, atol=1e-4)


def test_where_the_pictures_stand_does_not_matter():
    batch = drawn(3)
    turned = batch[:, :, :, [2, 0, 1]]
    got = [context().tokens(FROZEN, jnp.asarray(each)) for each in (batch, turned)]
    np.testing.assert_allclose(*got, rtol=1e-5, atol=1e-6)


def test_a_request_without_pictures_is_what_training_calls_missing(tmp_path):
    """The same arrays, so the same tokens and the same hint, to the digit."""
    Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    condition, query = context(), QueryImage(SIDE)
    none, some = (condition.collate([value])["context"] for value in (None, [path]))
    hidden = some * np.uint8(0)
    np.testing.assert_array_equal(none, hidden)
    np.testing.assert_array_equal(
        condition.tokens(FROZEN, jnp.asarray(none)), condition.tokens(FROZEN, jnp.asarray(hidden))
    )
    batch = query.collate([None, path])
    given = query.encode({}, {}, {"query": jnp.asarray(batch["query"])})
    assert given.inputs["hint_present"].tolist() == [False, True] == given.present.tolist()
    assert np.all(np.asarray(given.inputs["hint"][0]) == 0)
    assert np.abs(given.inputs["hint"][1]).max() > 0
    assert some[0, ..., 0, 3].min() == 255 and not some[0, :, :, 1:].any()


def test_a_black_picture_that_is_there_is_no_missing_one():
    """With normalization it is grey to the encoder; a missing one is black."""
    black = np.zeros((1, SIDE, SIDE, MOST, 4), np.uint8)
    there = black.copy()
    there[:, :, :, 0, 3] = 255
    condition = context(floor=0.05)
    got = [np.asarray(condition.tokens(FROZEN, jnp.asarray(each)))[0] for each in (there, black)]
    np.testing.assert_allclose(got[0], tokens_of(np.zeros((SIDE, SIDE, 3))), atol=1e-5)
    np.testing.assert_allclose(got[1], tokens_of(np.full((SIDE, SIDE, 3), -1.0)), atol=1e-5)


def test_pictures_of_any_size_and_kind_become_the_batchs(tmp_path):
    """Other sizes are cut to the central square and resized, transparency lies on white."""
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "wide.jpg")
    Image.new("L", (1, 1), 7).save(tmp_path / "pixel.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for name, expected in (("pixel.png", (7, 7, 7)), ("clear.png", (255, 255, 255))):
        found = read_picture(str(tmp_path / name), SIDE)
        assert found.shape == (SIDE, SIDE, 4) and found.dtype == np.uint8
        assert np.all(found == (*expected, 255))
    assert (
        np.abs(read_picture(str(tmp_path / "wide.jpg"), SIDE)[..., 0].astype(int) - 255).max() < 4
    )


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (9, 9), (200, 10, 10)).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


ASKED = (Text, ContextImages(MOST, side=1), QueryImage)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"context": "a.png"}, "has context = .*a.png': must be a list of 1 to 3 paths"),
        ({"context": ["a.png"] * 4}, "must be a list of 1 to 3 paths of picture files, it has 4"),
        ({"context": []}, "must be a list of 1 to 3 paths of picture files, it has 0"),
        ({"context": [3]}, "3: must be the path of a picture file"),
        ({"context": ["a.png", "b.png"]}, "b.png: no such file"),
        ({"context": ["\0"]}, "no file can have its name|no such file"),
        ({"query": ["a.png"]}, "must be the path of a picture file"),
        ({"query": "folder.png"}, "folder.png: is no regular file"),
        ({"query": "pipe.png"}, "pipe.png: is no regular file"),  # and does not wait for a writer
        ({"query": ""}, "must be the path of a picture file"),
        ({"text": None}, "request 1 is for no condition at all: must have one of text, context, q"),
        ({"text": ""}, "request 1 is for no condition at all"),
    ],
)
def test_requests_that_cannot_be_are_named(values, cause, files, monkeypatch):
    monkeypatch.chdir(files)
    request = {"text": None, "context": None, "query": None} | values
    with pytest.raises(ValueError, match=cause) as error:
        check_requests([request], ASKED)
    assert "\n" not in str(error.value)


def test_requests_with_any_one_of_them_are_allowed(files):
    path = str(files / "a.png")
    none = {"text": None, "context": None, "query": None}
    for values in ({"text": "a"}, {"context": [path] * 3}, {"query": path}):
        check_requests([none | values], ASKED)


@pytest.mark.parametrize("name", ["text.png", "cut.png", "pipe.png", "folder.png", "none.png"])
def test_what_is_no_picture_is_named_when_it_is_read(name, files):
    path = str(files / name)
    with pytest.raises(ValueError, match=f"{name}: cannot be read as a picture: "):
        QueryImage(SIDE).collate([str(files / "a.png"), path])
    with pytest.raises(ValueError, match=f"{name}: cannot be read as a picture: "):
        context().collate([[str(files / "a.png"), path]])

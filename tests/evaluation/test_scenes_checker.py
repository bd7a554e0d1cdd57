"""The checker: right on every rendered scene, also disturbed; wrong on everything else."""

import collections

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from contextdiff_jax.data import scenes
from contextdiff_jax.data.config import SHAPES, DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import ScenesSource
from contextdiff_jax.evaluation.scenes_checker import check, parse_caption, read

WRONG = dict.fromkeys(("colour", "shape", "position", "size", "all"), False)
RIGHT = dict.fromkeys(WRONG, True)


def disturb(image: np.ndarray, seed: int, noise: float, blur: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(image.astype(np.float32), (blur, blur, 0))
    return np.clip(soft + rng.normal(0, noise, image.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("noise", "blur"), [(0, 0), (10, 0), (0, 0.6), (10, 0.5)])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_reads_every_scene(side, noise, blur):
    source = ScenesSource(DataConfig(resolution=side))
    shapes = collections.Counter()
    for i in range(60):
        image = disturb(source[i].image, i, noise, blur)
        assert check(image, source.captions(i)[0]) == RIGHT, (i, source.captions(i))
        shapes.update(thing.shape for thing in source.scene(i).things)
    assert min(shapes[shape] for shape in SHAPES) >= 10


def test_measures_centre_and_radius():
    source = ScenesSource(DataConfig(resolution=64))
    for i in range(40):
        seen = sorted(read(source[i].image), key=lambda thing: (thing.x, thing.y))
        things = sorted(source.scene(i).things, key=lambda thing: thing.centre)
        for thing, found in zip(things, seen, strict=True):
            assert (found.x, found.y) == pytest.approx(thing.centre, abs=0.004)
            assert found.radius == pytest.approx(thing.radius, rel=0.06)
            assert found.fit > 0.99


@pytest.mark.parametrize("side", [256, 200])
def test_large_pictures(side):
    source = ScenesSource(DataConfig(resolution=side))
    for i in range(4):
        assert check(source[i].image, source.captions(i)[0]) == RIGHT


def test_captions_of_other_scenes_are_wrong():
    """Each attribute is judged alone: what differs is what is wrong."""
    source = ScenesSource(DataConfig(resolution=32, scenes=ScenesConfig(pairs=0, bare=0)))
    for i in range(12):
        (thing,) = source.scene(i).things
        image = source[i].image
        size = "small" if thing.radius < 0.2 else "large"
        cell = scenes.CELLS[int(3 * thing.centre[1]) * 3 + int(3 * thing.centre[0])]
        for other in ("red", "black"):
            expected = other == thing.colour
            caption = f"a {size} {other} {thing.shape} {cell}"
            assert check(image, caption) == RIGHT | {"colour": expected, "all": expected}
        for other in SHAPES:
            expected = other == thing.shape
            caption = f"a {size} {thing.colour} {other} {cell}"
            assert check(image, caption) == RIGHT | {"shape": expected, "all": expected}
        for other in scenes.CELLS:
            expected = other == cell
            caption = f"a {size} {thing.colour} {thing.shape} {other}"
            assert check(image, caption) == RIGHT | {"position": expected, "all": expected}
        other = "large" if size == "small" else "small"
        caption = f"a {other} {thing.colour} {thing.shape}"
        assert check(image, caption) == RIGHT | {"size": False, "all": False}
        assert check(image, f"a {thing.colour} {thing.shape}") == RIGHT
        assert check(image, f"a {thing.colour} {thing.shape} above a red circle") == WRONG


def test_pairs_bind_colours_to_shapes_and_sides():
    source = ScenesSource(DataConfig(resolution=32, scenes=ScenesConfig(pairs=1)))
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    checked = 0
    for i in range(30):
        image, caption = source[i].image, source.captions(i)[0]
        said = parse_caption(caption)
        (colour, shape), (colour_2, shape_2) = said.things
        back = opposite[said.relation]
        assert check(image, f"a {colour_2} {shape_2} {back} a {colour} {shape}") == RIGHT
        turned = check(image, f"a {colour} {shape} {back} a {colour_2} {shape_2}")
        assert turned == RIGHT | {"position": False, "all": False}
        if shape != shape_2:
            swapped = check(image, f"a {colour} {shape_2} {said.relation} a {colour_2} {shape}")
            assert not swapped["all"] and not swapped["shape"]
            checked += 1
        assert check(image, f"a {colour} {shape}") == WRONG
    assert checked > 15


def drawn_by_pil(draw_on, side: int, background=(240, 240, 235)) -> np.ndarray:
    image = Image.new("RGB", (side * 8, side * 8), background)
    draw_on(ImageDraw.Draw(image), side * 8)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


@pytest.mark.parametrize("side", [16, 48])
def test_pictures_that_the_package_did_not_draw(side):
    def circle(pen, n):
        pen.ellipse((0.53 * n, 0.13 * n, 0.83 * n, 0.43 * n), fill=(220, 30, 30))

    def triangle(pen, n):
        corners = [(0.25 * n, 0.35 * n), (0.4 * n, 0.65 * n), (0.1 * n, 0.65 * n)]
        pen.polygon(corners, fill=(50, 80, 220))

    def both(pen, n):
        pen.rectangle((0.62 * n, 0.35 * n, 0.92 * n, 0.65 * n), fill=(50, 150, 50))
        triangle(pen, n)

    assert check(drawn_by_pil(circle, side), "a small red circle at the top right") == RIGHT
    assert check(drawn_by_pil(circle, side), "a red circle")["all"]
    assert not check(drawn_by_pil(circle, side), "a red square")["all"]
    assert check(drawn_by_pil(both, side), "a blue triangle left of a green square") == RIGHT


def test_unknown_shapes_and_colours_are_neither():
    def bar(pen, n):
        pen.rectangle((0.2 * n, 0.45 * n, 0.8 * n, 0.55 * n), fill=(220, 30, 30))

    def grey(pen, n):
        pen.ellipse((0.3 * n, 0.3 * n, 0.7 * n, 0.7 * n), fill=(128, 128, 128))

    (seen,) = read(drawn_by_pil(bar, 32))
    assert seen.shape is None and seen.colour == "red"
    (seen,) = read(drawn_by_pil(grey, 32))
    assert seen.shape == "circle" and seen.colour is None


@pytest.mark.parametrize("side", [16, 64])
def test_pictures_of_nothing_are_wrong(side):
    rng = np.random.default_rng(0)
    blank = np.full((side, side, 3), 240, np.uint8)
    noise = rng.integers(256, size=(side, side, 3)).astype(np.uint8)
    smooth_noise = ndimage.gaussian_filter(
        rng.normal(size=(side, side, 3)), (side / 8, side / 8, 0)
    )
    clouds = np.clip(128 + 127 * smooth_noise / smooth_noise.std(), 0, 255).astype(np.uint8)
    dark = np.full((side, side, 3), 20, np.uint8)
    grainy = disturb(blank, 0, 10, 0)
    for image in (blank, noise, clouds, dark, grainy, np.zeros_like(blank)):
        for caption in ("a red circle", "a black square", "a red circle left of a blue cross"):
            assert not check(image, caption)["all"]
    for image in (blank, noise, dark, grainy):
        assert read(image) == []


def test_other_sentences_are_refused():
    for caption in ("a dog", "", "a red circle beside a blue square", "a red", "red circle circle"):
        with pytest.raises(ValueError, match="must be like 'a small red circle"):
            parse_caption(caption)
    assert parse_caption(" A  Red circle ").things == (("red", "circle"),)


def test_other_arrays_are_refused():
    for array in (
        np.zeros((32, 32, 3)),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((32, 16, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="must be uint8"):
            read(array)

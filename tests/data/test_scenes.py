"""Scenes: deterministic, as described, and drawn as PIL draws them."""

import collections
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from contextdiff_jax.data import scenes, scenes_drawing
from contextdiff_jax.data.config import COLOURS, SHAPES, DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import CELLS, ScenesSource, held_out

POLYGONS = {  # corners for radius 1, written down from the definition of each shape
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "diamond": [(0, -1.12), (1.12, 0), (0, 1.12), (-1.12, 0)],
    "triangle": [(0, -1), (1.1, 1), (-1.1, 1)],
    "cross": [
        *((-0.38, -1.08), (0.38, -1.08), (0.38, -0.38), (1.08, -0.38), (1.08, 0.38), (0.38, 0.38)),
        *((0.38, 1.08), (-0.38, 1.08), (-0.38, 0.38), (-1.08, 0.38), (-1.08, -0.38)),
        (-0.38, -0.38),
    ],
}


def covered_by_pil(shape: str, x: float, y: float, radius: float, side: int) -> np.ndarray:
    """The share of each pixel covered, by drawing at 32 times the size and averaging."""
    fine = 32
    image = Image.new("L", (side * fine, side * fine))
    if shape == "circle":
        box = [(c + s * radius) * fine - 0.5 for s in (-1, 1) for c in (x, y)]
        ImageDraw.Draw(image).ellipse(box, fill=255)
    else:
        corners = [
            ((x + radius * u) * fine - 0.5, (y + radius * v) * fine - 0.5)
            for u, v in POLYGONS[shape]
        ]
        ImageDraw.Draw(image).polygon(corners, fill=255)
    pixels = np.asarray(image, np.float64) / 255
    return pixels.reshape(side, fine, side, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("x", "y", "radius"), [(8.0, 8.0, 2.7), (7.3, 8.6, 4.1), (10.2, 5.9, 5.0)])
def test_drawing_matches_supersampling(shape, x, y, radius):
    ours = scenes_drawing.coverage(shape, x, y, radius, range(16), range(16))
    theirs = covered_by_pil(shape, x, y, radius, 16)
    assert ours.dtype == np.float32
    # Distances are exact along edges, and only approximate the area at corners.
    assert np.abs(ours - theirs).max() < 0.3
    assert np.abs(ours - theirs).mean() < 0.008
    assert abs(ours.sum() / theirs.sum() - 1) < 0.03


@pytest.mark.parametrize(
    ("shape", "area", "centroid"),
    [
        ("circle", math.pi, 0),
        ("square", 1.76**2, 0),
        ("triangle", 2.2, 1 / 3),
        ("diamond", 2 * 1.12**2, 0),
        ("cross", 2 * 2.16 * 0.76 - 0.76**2, 0),
    ],
)
def test_moments(shape, area, centroid):
    assert scenes_drawing.moments(shape) == pytest.approx((area, centroid), abs=2e-3)


def test_a_scene_is_a_function_of_split_and_index():
    source, again = ScenesSource(DataConfig()), ScenesSource(DataConfig())
    numbers = (0, 5, 5, 2**31 - 1)
    for i in numbers:
        one, other = source[i], again[i]
        np.testing.assert_array_equal(one.image, other.image)
        assert one.captions == other.captions == source.captions(i)
        assert one.key == f"train/{i}"
    test = ScenesSource(DataConfig(split="test"))
    assert all(source.scene(i) != test.scene(i) for i in range(50))
    assert len({source.scene(i) for i in range(200)}) == 200
    with pytest.raises(IndexError):
        source[2**31]


def test_resolutions_show_the_same_scene():
    small, large = (ScenesSource(DataConfig(resolution=r)) for r in (32, 128))
    for i in range(20):
        assert small.captions(i) == large.captions(i)
        shrunk = large[i].image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small[i].image).mean() < 1.5


def test_objects_stay_inside_and_apart():
    for config in (ScenesConfig(pairs=0), ScenesConfig(pairs=1)):
        for i in range(300):
            scene = scenes.make_scene(config, "train", i)
            for thing in scene.things:
                reach = scenes_drawing.REACH * thing.radius
                assert all(reach - 0.01 <= v <= 1.01 - reach for v in thing.centre), i
            if len(scene.things) == 2:
                gap = max(
                    abs(a - b) for a, b in zip(*(t.centre for t in scene.things), strict=True)
                )
                reach = sum(scenes_drawing.REACH * t.radius for t in scene.things)
                assert gap - reach > 0.08  # 1.3 pixels at 16


def test_captions_say_what_is_there():
    shares = collections.Counter()
    for i in range(600):
        scene = scenes.make_scene(ScenesConfig(), "train", i)
        words = scene.caption
        for thing in scene.things:
            assert f"{thing.colour} {thing.shape}" in words
            near = np.array(scenes_drawing.PALETTE[thing.colour])
            assert np.abs(np.array(thing.rgb) - near).max() <= 8
        shares[len(scene.things)] += 1
        if len(scene.things) == 2:
            check_relation(scene)
        else:
            shares["bare"] += words.count(" ") == 2
            check_single(scene)
    assert 240 < shares[1] < 360
    assert 0.15 < shares["bare"] / shares[1] < 0.35


def check_relation(scene) -> None:
    first, second = sorted(scene.things, key=lambda t: scene.caption.index(f"{t.colour} {t.shape}"))
    across, down = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    expected = {
        "left of": across > 0.4,
        "right of": across < -0.4,
        "above": down > 0.4,
        "below": down < -0.4,
    }
    said = [relation for relation in expected if f" {relation} " in scene.caption]
    assert len(said) == 1 and expected[said[0]]
    assert first.colour != second.colour


def check_single(scene) -> None:
    (thing,) = scene.things
    words, (x, y) = scene.caption, thing.centre
    assert ("left" in words) <= (x < 0.4) and ("right" in words) <= (x > 0.6)
    assert ("top" in words) <= (y < 0.4) and ("bottom" in words) <= (y > 0.6)
    assert ("middle" in words) <= (max(abs(x - 0.5), abs(y - 0.5)) < 0.02)
    if words.endswith(("at the top", "at the bottom")):
        assert abs(x - 0.5) < 0.02
    assert ("small" in words) <= (thing.radius < 0.2) and ("large" in words) <= (thing.radius > 0.2)


def combinations(split: str, count: int, config=None):
    """(colour, shape, place) of every object, the place worked out from its centre."""
    for i in range(count):
        scene = scenes.make_scene(config or ScenesConfig(), split, i)
        for thing in scene.things:
            (x, y), cell = thing.centre, None
            if len(scene.things) == 1:
                cell = CELLS[int(3 * y) * 3 + int(3 * x)]
            elif abs(x - 0.5) > abs(y - 0.5):
                cell = "left" if x < 0.5 else "right"
            else:
                cell = "above" if y < 0.5 else "below"
            yield i, (thing.colour, thing.shape, cell)


def test_held_out_combinations_never_train():
    kept_out = {
        (c, s, p)
        for c in COLOURS
        for s in SHAPES
        for p in (*CELLS, "left", "right", "above", "below")
        if held_out(c, s, p)
    }
    # One cell of nine for each colour and shape, and some sides.
    singles = [found for found in kept_out if found[2] in CELLS]
    assert len(singles) == 40 and len({found[:2] for found in singles}) == 40
    train = {found for _, found in combinations("train", 4000)}
    assert not train & kept_out
    assert len(train) == 40 * 13 - len(kept_out)  # and everything else does
    assert not {found for _, found in combinations("test", 500)} & kept_out
    by_scene = collections.defaultdict(list)
    for i, found in combinations("compositional", 300):
        by_scene[i].append(found in kept_out)
    assert all(any(new) for new in by_scene.values())


def test_compositional_captions_name_the_place():
    config = ScenesConfig(pairs=0, bare=1.0)
    for i in range(50):
        caption = scenes.make_scene(config, "compositional", i).caption
        assert caption.endswith(CELLS)


def test_options():
    config = ScenesConfig(pairs=1, shapes=("circle",), colours=("red", "blue"))
    for i in range(30):
        scene = scenes.make_scene(config, "train", i)
        assert {thing.shape for thing in scene.things} == {"circle"}
        assert {thing.colour for thing in scene.things} == {"red", "blue"}
    assert all(
        len(scenes.make_scene(ScenesConfig(pairs=0), "train", i).things) == 1 for i in range(50)
    )

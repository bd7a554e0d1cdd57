"""Scenes in context: the same look, another layout; the query shows the layout and no colour."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.context_scenes import TEXTURES
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.scenes import CELLS, held_out
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation.in_context_scenes import (
    Look,
    agreement,
    look_of,
    look_wanted,
    others,
)

CONFIG = DataConfig(resolution=16, split="test", scenes=ScenesConfig(pairs=0.0, context=3))


@pytest.fixture(scope="module")
def source():
    return open_source(CONFIG)


@pytest.fixture(scope="module")
def examples(source):
    return [source[index] for index in range(24)]


def test_context_has_the_look_and_the_query_the_layout(source, examples):
    """Read back by the checker, which knows nothing of how they were drawn."""
    for index, example in enumerate(examples):
        wanted = look_wanted(source.shown(index))
        assert look_of(example.image) == wanted
        assert wanted.colour in example.captions[0] and wanted.shape in example.captions[0]
        assert example.captions[0].endswith(wanted.texture)
        query = example.maps["query"]
        assert np.ptp(query[..., :3], axis=2).max() == 0  # grey
        seen = look_of(query[..., :3])
        assert (seen.shape, seen.place) == (wanted.shape, wanted.place)
    looks = [
        [look_of(np.ascontiguousarray(e.maps["context"][:, :, k, :3])) for k in range(3)]
        for e in examples
    ]
    for index, three in enumerate(looks):
        wanted = look_wanted(source.shown(index))
        assert {look.colour for look in three} == {wanted.colour}
        assert sum(look.texture == wanted.texture for look in three) >= 2  # tiny ones say little
        assert len({(look.shape, look.place) for look in three}) > 1


def test_a_sample_is_a_pure_function_of_split_and_index(source, examples):
    again = open_source(CONFIG)[7]
    np.testing.assert_array_equal(again.image, examples[7].image)
    for name in ("query", "context"):
        np.testing.assert_array_equal(again.maps[name], examples[7].maps[name])
    other = open_source(dataclasses.replace(CONFIG, split="train"))[7]
    assert not np.array_equal(other.maps["context"], again.maps["context"])
    assert {source.shown(index).texture for index in range(24)} == set(TEXTURES)


def test_what_training_never_shows_is_not_in_its_targets():
    train = open_source(dataclasses.replace(CONFIG, split="train"))
    for index in range(200):
        [thing] = train.shown(index).scene.things
        column, row = look_wanted(train.shown(index)).place
        assert not held_out(thing.colour, thing.shape, CELLS[3 * row + column])


def test_batches_hold_query_and_context(source):
    batch = next(iter(make_batches(source, CONFIG, 4, seed=0)))
    assert batch["query"].shape == (4, 16, 16, 4) and batch["query"].dtype == np.uint8
    assert batch["context"].shape == (4, 16, 16, 3, 4)


def test_shares_are_counted_by_what_must_come_from_where():
    red = Look("red", "plain", "circle", (0, 0))
    blue = Look("blue", "striped", "square", (1, 2))
    mixed = Look("red", "plain", "square", (1, 2))
    own = agreement([mixed, blue], [red, blue], [blue, blue])
    assert set(own.values()) == {1.0}
    half = agreement([mixed, Look()], [red, blue], [red, blue])
    assert half["colour and texture"] == 0.5 and half["shape and place"] == 0.0
    assert others([red, blue, mixed]) == [blue, mixed, red]


@pytest.mark.parametrize(
    ("scenes", "cause"),
    [
        (
            ScenesConfig(pairs=0.5, context=1),
            "data.scenes.pairs = 0.5: must be 0 with",
        ),
        (ScenesConfig(pairs=0.0, context=9), "data.scenes.context = 9: must be in 0..8"),
    ],
)
def test_what_cannot_be_is_named(scenes, cause):
    with pytest.raises(ValueError, match=cause):
        open_source(DataConfig(scenes=scenes))

"""Each mistake in the data section ends with a sentence that names the key."""

import dataclasses

import pytest
from PIL import Image

from contextdiff_jax.data.config import DataConfig, ScenesConfig


def test_defaults_are_valid():
    DataConfig().validate("data")
    DataConfig(max_pixels=2 * Image.MAX_IMAGE_PIXELS).validate("data")
    DataConfig(source="shards", path="x", min_original_side=64).validate("data")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resolution": 4}, r"runs.base.data.resolution = 4: must be at least 8"),
        ({"threads": -2}, r"data.threads = -2: must be at least -1"),
        ({"limit": -1}, r"data.limit = -1"),
        ({"min_side": 0}, r"data.min_side = 0"),
        ({"max_pixels": 0}, r"data.max_pixels = 0: must be 1 to 178956970"),
        ({"max_pixels": 2 * Image.MAX_IMAGE_PIXELS + 1}, r"data.max_pixels = .*: must be 1 to"),
        ({"source": "shards", "path": "x", "split": "val"}, r"data.split = 'val': must be 'train'"),
        ({"source": "folder"}, r"data.path is empty: source 'folder' needs one"),
        ({"split": "val"}, r"data.split = 'val': must be one of train, test, compositional"),
        ({"flip": True}, r"data.flip = True: must be False, captions of scenes say left and right"),
        (
            {"source": "folder", "path": "x", "min_original_side": 5},
            r"data.min_original_side = 5: must be 0, source 'folder' does not record",
        ),
        ({"caption_template": "a photo"}, r"data.caption_template = 'a photo': must hold {} once"),
        ({"caption_template": "{} {}"}, r"data.caption_template = '{} {}': must hold {} once"),
        ({"scenes": ScenesConfig(pairs=1.5)}, r"data.scenes.pairs = 1.5: must be in \[0, 1\]"),
        (
            {"scenes": ScenesConfig(shapes=("circle", "heart"))},
            r"data.scenes.shapes = .*heart.*: must be different names from circle",
        ),
        ({"scenes": ScenesConfig(shapes=())}, r"data.scenes.shapes = \(\)"),
        ({"scenes": ScenesConfig(colours=("red", "red"))}, r"data.scenes.colours"),
        (
            {"scenes": ScenesConfig(colours=("red",))},
            r"must be at least two with .*pairs = 0.5",
        ),
    ],
)
def test_sentences(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**options).validate("runs.base.data")


@pytest.mark.parametrize(
    ("options", "cores", "threads"),
    [
        ({"source": "shards", "path": "x"}, 2, 2),
        ({"source": "shards", "path": "x"}, 240, 8),
        ({"source": "shards", "path": "gs://bucket/x"}, 2, 8),
        ({"source": "scenes"}, 16, 1),
        ({"source": "folder", "path": "x", "threads": 5}, 2, 5),
        ({"source": "folder", "path": "x", "threads": 0}, 2, 0),
    ],
)
def test_threads_by_source_and_cores(monkeypatch, options, cores, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert DataConfig(**options).reading_threads == threads


def test_every_key_is_documented():
    for section in (DataConfig, ScenesConfig):
        for field in dataclasses.fields(section):
            if dataclasses.is_dataclass(field.type):
                continue
            assert f"{field.name}:" in section.__doc__ or f"{field.name}," in section.__doc__, field

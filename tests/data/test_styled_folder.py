"""The same things in several styles: which pictures show a sample, and which rows are none."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data.config import DataConfig, StylesConfig
from contextdiff_jax.data.example import DamagedSample, SkipReport
from contextdiff_jax.data.sources import open_source

STYLES = ("flat", "3d", "ink")
ITEMS = [f"thing {number}" for number in range(20)]


def write(folder, rows):
    for name, colour, _ in rows:
        Image.new("RGB", (12, 12), colour).save(folder / name)
    lines = [json.dumps({"file_name": name, **row}) for name, _, row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def row(number, style, **changes):
    """A picture whose colour tells item and style."""
    name = f"{number}_{style}.png"
    values = {"id": ITEMS[number], "style": STYLES[style], "caption": f"{ITEMS[number]} {style}"}
    return name, (10 * number, 60 * style, 0), values | changes


@pytest.fixture
def config(tmp_path):
    write(tmp_path, [row(number, style) for number in range(20) for style in range(3)])
    styles = StylesConfig(context=3, held_out=2)
    return DataConfig("folder", str(tmp_path), resolution=12, styles=styles)


def told(pixels):
    """Item and style of a picture (R, R, 4)."""
    red, green, _, alpha = pixels[0, 0]
    assert alpha == 255
    return int(round(red / 10)), int(round(green / 60))


def test_query_and_context_are_what_they_must_be(config):
    found = {}
    for split in ("train", "test"):
        source = open_source(dataclasses.replace(config, split=split))
        assert len(source) % 3 == 0
        for index in range(len(source)):
            example = source[index]
            item, style = told(np.concatenate([example.image, 255 + 0 * example.image[..., :1]], 2))
            assert example.captions == (f"{ITEMS[item]} {style}",) == source.captions(index)
            query = told(example.maps["query"])
            assert query[0] == item and query[1] != style
            context = [told(example.maps["context"][:, :, k]) for k in range(3)]
            assert {each[1] for each in context} == {style}
            others = {each[0] for each in context}
            assert len(others) == 3 and item not in others
            found.setdefault(split, set()).update({item, query[0], *others})
            again = source[index].maps
            assert all(np.array_equal(again[name], example.maps[name]) for name in again)
    assert found["train"] | found["test"] == set(range(20)) and not found["train"] & found["test"]


def test_rows_without_partner_are_counted(config, tmp_path):
    rows = [row(n, s) for n in range(20) for s in range(2)]
    rows += [row(5, 2), row(6, 2, id=None), row(7, 2, id="alone")]
    write(tmp_path, rows)
    report = SkipReport()
    # held_out so large that everything is of split "train".
    styles = StylesConfig(context=3, held_out=10**6)
    source = open_source(dataclasses.replace(config, styles=styles), report)
    assert len(source) == 40
    assert report.counts() == {
        "its row names no item or style": 1,
        "its item is in one style only": 1,
        "too few other items in its style": 1,
    }


def test_a_damaged_query_damages_the_sample(config, tmp_path):
    source = open_source(config)
    query, _ = source.chosen(0)
    name = source._folder.values[query][2]
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(Exception, match="its query or context: no usable image") as error:
        source[0]
    assert error.value.key == source._folder.values[source.row(0)][2]


def test_a_query_of_another_size_is_one_unless_it_lies_elsewhere(config, tmp_path):
    """Twice as large is the same place; twice as wide is another."""
    source = open_source(dataclasses.replace(config, keep_mib=0))
    index = 0
    query = tmp_path / source._folder.values[source.chosen(index)[0]][2]
    expected = source[index]
    Image.open(query).resize((24, 24)).save(query)
    np.testing.assert_array_equal(source[index].maps["query"], expected.maps["query"])
    Image.open(query).resize((24, 12)).save(query)
    with pytest.raises(DamagedSample, match="query is not as wide for its height"):
        source[index]
    stretched = open_source(dataclasses.replace(config, resize_mode="stretch"))
    np.testing.assert_array_equal(stretched[index].maps["query"], expected.maps["query"])


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"split": "val"}, "split 'val': must be one of train, test"),
        ({"styles": StylesConfig(item="name", context=1)}, "no usable sample .* no item or style"),
        ({"styles": StylesConfig(context=9)}, "data.styles.context = 9: must be in 0..8"),
        ({"styles": StylesConfig(context=1, held_out=1)}, "held_out = 1: must be at least 2"),
    ],
)
def test_what_cannot_be_is_named(changes, cause, config):
    with pytest.raises(ValueError, match=cause):
        open_source(dataclasses.replace(config, **changes))


def test_styles_are_of_folders_alone():
    config = DataConfig(styles=StylesConfig(context=1))
    with pytest.raises(ValueError, match="styles.context = 1: must be 0, the source is 'scenes'"):
        config.validate("data")


def test_the_emoji(shared_data):
    config = DataConfig(
        "folder", str(shared_data("emoji")), resolution=16, styles=StylesConfig(context=3)
    )
    report = SkipReport()
    train = open_source(config, report)
    test = open_source(dataclasses.replace(config, split="test"))
    rows = (shared_data("emoji") / "metadata.jsonl").read_text().splitlines()
    assert len(train) + len(test) == len(rows) and len(test) > 400
    assert report.total == 0
    example = train[0]
    assert example.maps["query"].shape == (16, 16, 4)
    assert example.maps["context"].shape == (16, 16, 3, 4)

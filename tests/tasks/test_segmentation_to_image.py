"""Segmentation maps: as large as their pictures, of known numbers, moved with the picture, seen."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from configs import layout
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.layout_networks import MapConfig
from contextdiff_jax.conditions.requests import check_requests
from contextdiff_jax.conditions.segmentation import UNKNOWN, Segmentation, SegmentedSource
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.decode import to_square
from contextdiff_jax.data.example import DamagedSample, SkipReport
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.segmentation import (
    MASK_MISSING,
    MASK_NOT_INDICES,
    MASK_SIZE,
    MASK_UNUSABLE,
    NO_LABEL,
    read_mask,
)
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.runs.validation import validate

LABELS = (3, 0, 200)
SIZES = MapConfig(width=8, painted=4, adapter_width=8, grid=4, channels=4, groups=2)


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["center_crop", "border", "stretch"])
@pytest.mark.parametrize("size", [(30, 20), (20, 30)])
def test_a_map_is_made_square_as_its_picture_is(mode, size):
    """Against the picture of the same pixels: where that is plain, the map has its number."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 2], mask[height // 2 :, width // 2 :] = 3, 200
    found = read_mask(png(mask), "a", size, 16, mode)
    colours = np.stack([mask] * 3, axis=-1)
    square = np.asarray(to_square(Image.fromarray(colours), 16, mode)).astype(int)[..., 0]
    inside = found != NO_LABEL
    assert inside.all() == (mode != "border")
    plain = np.isin(square, (0, 3, 200)) & inside
    assert plain.sum() > 0.5 * inside.sum() and (found[plain] == square[plain]).all()
    assert set(np.unique(found[inside])) == {0, 3, 200}


def write(folder, rows, picture_bytes):
    lines = []
    for number, (name, mask) in enumerate(rows.items()):
        (folder / f"{name}.png").write_bytes(picture_bytes(number, (20, 20)))
        row = {"file_name": f"{name}.png", "caption": name}
        if mask is not None:
            (folder / f"{name}_mask.png").write_bytes(mask)
            row["mask"] = f"{name}_mask.png"
        lines.append(json.dumps(row))
    for mask in ("../out.png", " "):
        lines.append(json.dumps({"file_name": "good.png", "caption": "x", "mask": mask}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_maps_of_a_folder_are_mirrored_and_bad_ones_counted(tmp_path):
    half = np.zeros((20, 20), np.uint8)
    half[:, :10] = 200

    def picture_bytes(number, size):
        return png(np.stack([np.where(half > 0, 250, 10)] * 3, axis=-1))

    rows = {
        "good": png(half),
        "none": None,
        "small": png(half[:10]),
        "unknown": png(half + 1),
        "colours": png(np.stack([half] * 3, axis=-1)),
        "text": b"<html>",
    }
    write(tmp_path, rows, picture_bytes)
    data = DataConfig(
        source="folder", path=str(tmp_path), resolution=8, mask_field="mask", flip=True
    )
    report = SkipReport()
    opened = open_source(data, report)
    assert report.counts() == {MASK_MISSING: 2}  # of whatever task
    source = SegmentedSource(opened, LABELS)
    batches = make_batches(source, data, 32, seed=0, report=report)
    batch = next(batches)
    batches.close()
    bright = batch["image"][..., 0] > 127
    np.testing.assert_array_equal(batch["segmentation"], np.where(bright, 2, 1))
    assert len({bool(each) for each in bright[:, 0, 0]}) == 2  # some are mirrored
    assert report.counts() == {
        MASK_MISSING: 2,
        MASK_SIZE: 1,
        MASK_NOT_INDICES: 2,
        UNKNOWN: 1,
        f"{MASK_UNUSABLE}: it leads out of the folder": 1,
    }


def test_real_maps_lie_over_their_photographs(shared_data, tmp_path):
    folder = shared_data("layout")
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").open()]
    rows = [row for row in rows if row["dataset"] == "camvid"][:3]
    lines = []
    for row in rows:
        names = {key: row[key].rpartition("/")[2] for key in ("image", "mask")}
        for key, name in names.items():
            (tmp_path / name).write_bytes((folder / row[key]).read_bytes())
        lines.append(
            json.dumps({"file_name": names["image"], "mask": names["mask"], "caption": "a street"})
        )
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    data = DataConfig(source="folder", path=str(tmp_path), resolution=32, mask_field="mask")
    source = SegmentedSource(open_source(data), range(12))
    sky, road = [], []
    for index in range(3):
        example = source[index]
        number = example.maps["segmentation"]
        assert number.shape == (32, 32) and number.min() >= 0
        sky.append(example.image[number == 0].mean())
        road.append(example.image[number == 3].mean())
    assert np.mean(sky) > np.mean(road) + 30
    with pytest.raises(DamagedSample, match="a number that is none"):
        SegmentedSource(open_source(data), range(3))[0]


@pytest.fixture(scope="module")
def condition():
    return Segmentation(LABELS, SIZES, side=8)


def test_what_the_networks_get_of_a_map(condition):
    shapes = nn.unbox(jax.eval_shape(condition.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    places = np.full((3, 8, 8), NO_LABEL, np.int32)
    places[1:, :, 2:] = rng.integers(0, 3, (8, 6))
    places[2, 0, 2] = (places[1, 0, 2] + 1) % 3
    given = jax.jit(lambda batch: condition.encode(params, {}, batch))({"segmentation": places})
    assert given.present.tolist() == [False, True, True]
    table = params["map"]["embedding"]["table"]
    drawn = np.asarray(given.inputs["condition_map"])
    assert (drawn[0] == 0).all() and (drawn[1, :, :2] == 0).all()
    np.testing.assert_allclose(drawn[1, :, 2:, :4], table[places[1, :, 2:]], rtol=1e-6)
    assert given.tokens.shape == (3, 1, 8) and given.adapter_tokens.shape == (3, 1, 8)
    for part in (given.tokens, given.adapter_tokens, drawn):  # one pixel is seen by all
        assert np.abs(part[1] - part[2]).max() > 1e-4
    assert set(condition.without_adapter().init(jax.random.key(0))) == {"map", "token"}


def test_requests_name_files_of_maps(condition, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 3
    files = {"good": png(mask), "wide": png(mask[:8]), "unknown": png(mask + 1), "text": b"<html>"}
    for name, data in files.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    good = str(tmp_path / "good.png")
    check_requests([{"segmentation": good}, {"segmentation": None}], [condition])
    arrays = condition.collate([good, ""])["segmentation"]
    assert arrays[0, 0].tolist() == [1] * 4 + [0] * 4 and (arrays[1] == NO_LABEL).all()
    for name, sentence in (
        ("wide", "the map is 16x8: must be square"),
        ("unknown", "a number that is none of the classes'"),
        ("text", "no PNG of numbers of classes"),
        ("gone", "does not exist"),
    ):
        with pytest.raises(ValueError, match=f"request 1 has segmentation = .*{sentence}"):
            check_requests([{"segmentation": str(tmp_path / f"{name}.png")}], [condition])
    with pytest.raises(ValueError, match="must be a text"):
        check_requests([{"segmentation": [1]}], [condition])


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("labels", (), r"base.task.labels = \(\): must be different numbers"),
        ("labels", (1, 1), r"base.task.labels = \(1, 1\): must be different numbers"),
        ("labels", (0, -1), r"base.task.labels = \(0, -1\): must be numbers 0 to 65535"),
        ("segmentation.grid", 12, r"segmentation.grid = 12: must divide data.resolution = 32"),
        ("segmentation.width", 32, r"unet.text_dim = 64: must be 32"),
    ],
)
def test_mistakes_name_the_key(key, value, sentence):
    values = layout.get_config("maps").to_dict() | {"data_path": "somewhere"}
    *path, last = key.split(".")
    section = values["runs"]["base"]["task"]
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


def test_masks_must_be_read_and_can_be():
    values = layout.get_config("maps").to_dict() | {"data_path": "somewhere"}
    values["runs"]["base"]["data"]["mask_field"] = ""
    with pytest.raises(ValueError, match="base.data.mask_field is missing; segmentation_to_image"):
        validate(cfg.from_config_dict(values))
    with pytest.raises(
        ValueError, match="data.mask_field = 'mask': must be empty, source 'scenes'"
    ):
        dataclasses.replace(DataConfig(), mask_field="mask").validate("data")

"""Boxes over pictures: read, written, moved with the picture, and exact on rendered scenes."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data import boxes as layouts
from contextdiff_jax.data.boxes import BadBoxes, Box, in_square, line_of, parse_line, read_boxes
from contextdiff_jax.data.config import SHAPES, DataConfig, ScenesConfig, StylesConfig
from contextdiff_jax.data.decode import to_square
from contextdiff_jax.data.example import DamagedSample, Example, SkipReport
from contextdiff_jax.data.folder import FolderSource
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.scenes import ScenesSource
from contextdiff_jax.data.scenes_drawing import box_of, coverage

TWO = (Box("red circle", (0.1, 0.2, 0.5, 0.6)), Box("dog 7", (0, 0, 1, 0.123456)))


def test_a_line_is_read_as_it_was_written():
    assert line_of(TWO) == "red circle 0.1 0.2 0.5 0.6; dog 7 0 0 1 0.123456"
    assert parse_line(line_of(TWO)) == TWO
    assert parse_line("  red   circle 0.1 .2 0.5 6e-1 ;") == TWO[:1]
    assert parse_line(line_of(())) == parse_line(";") == ()


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([0.1, 0.2, 0.5, 1.1], layouts.OUTSIDE),
        ([0, 0, 1, 10**400], layouts.OUTSIDE),
        ([-0.1, 0.2, 0.5, 1.0], layouts.OUTSIDE),
        ([0.5, 0.2, 0.1, 0.6], layouts.NO_AREA),
        ([0.5, 0.2, 0.5, 0.6], layouts.NO_AREA),
        ([0.1, 0.2, 0.5], layouts.NOT_A_LIST),
        (["0", 0, 1, 1], layouts.NOT_A_LIST),
        ([True, 0, 1, 1], layouts.NOT_A_LIST),
        ([float("nan"), 0, 1, 1], layouts.NOT_A_LIST),
        (None, layouts.NOT_A_LIST),
    ],
)
def test_boxes_that_are_none_say_why(box, reason):
    with pytest.raises(BadBoxes) as caught:
        read_boxes([{"name": "dog", "box": box}])
    assert caught.value.reason == reason
    with pytest.raises(DamagedSample) as caught:
        layouts.boxes_of_sample([{"name": "dog", "box": box}], "a.png")
    assert (caught.value.key, caught.value.reason) == ("a.png", reason)


@pytest.mark.parametrize("value", [3, "dog", {"name": "dog"}, ["dog"], [{"box": [0, 0, 1, 1]}]])
def test_what_is_no_list_of_boxes(value):
    with pytest.raises(BadBoxes, match=r"must be .*x0, y0, x1, y1"):
        read_boxes(value)


@pytest.mark.parametrize("line", ["dog", "dog 0 0 1", "0 0 1 1", "dog a 0 1 1", "dog 0 0 1 1, 2"])
def test_lines_that_are_none(line):
    with pytest.raises(BadBoxes, match="must be a name and four numbers"):
        parse_line(line)


def test_a_box_that_was_taken_is_one_line_that_is():
    """Rounding to six decimals may make a thin one thinner than the least of a row."""
    box = [0.789935, 0, 0.7899451, 1]
    [found] = read_boxes([{"name": "a", "box": box}])
    for each in (found, *layouts.mirrored([found])):
        assert len(parse_line(line_of([each]))) == 1


def test_corners_rounded_to_a_hair_outside_are_taken_to_the_border():
    [box] = read_boxes([{"name": "dog", "box": [-0.00005, 0, 1.00005, 1]}])
    assert box.corners == (0, 0, 1, 1)


@pytest.mark.parametrize("mode", ["center_crop", "border", "stretch"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (200, 200)])
def test_boxes_move_as_pixels_do(mode, size):
    """Against the picture: a white box on black is where its corners say, to a pixel."""
    width, height = size
    box = Box("dog", (0.3, 0.25, 0.9, 0.7))
    x0, y0, x1, y1 = (v * s for v, s in zip(box.corners, (width, height) * 2, strict=True))
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[round(y0) : round(y1), round(x0) : round(x1)] = (255, 0, 0)
    side = 100
    square = np.asarray(to_square(Image.fromarray(pixels), side, mode)).astype(int)
    rows, columns = np.nonzero(square[..., 0] - square[..., 1] > 127)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    [moved] = in_square([box], width, height, mode)
    np.testing.assert_allclose(np.array(moved.corners) * side, found, atol=1.01)


def test_a_box_that_the_crop_leaves_nothing_of_is_gone():
    assert in_square([Box("dog", (0, 0, 0.1, 1))], 400, 200, "center_crop") == ()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_of_a_shape_is_that_of_its_pixels(shape):
    alpha = coverage(shape, 100, 100, 60, range(200), range(200))
    rows, columns = np.nonzero(alpha > 0.5)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_allclose(box_of(shape, 100, 100, 60), found, atol=1.5)


def test_scenes_know_their_boxes():
    config = DataConfig(resolution=128, scenes=ScenesConfig(pairs=0.5))
    source = ScenesSource(config)
    for index in range(20):
        example = source[index]
        difference = np.abs(example.image.astype(int) - example.image[0, 0]).max(axis=2) > 20
        inside = np.zeros_like(difference)
        for box in example.boxes:
            x0, y0, x1, y1 = (round(128 * value) for value in box.corners)
            inside[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = True
            edges = difference[y0:y1, x0:x1]
            assert edges.any(axis=1).mean() > 0.9 and edges.any(axis=0).mean() > 0.9
            assert box.name in example.captions[0]
        assert not (difference & ~inside).any()


class Asymmetric:
    """Pictures whose left half is bright, with captions that say so."""

    name = "asymmetric"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, :4] = 255
        return Example(image, ("left",), str(index), mirrored_captions=("right",))

    def captions(self, index):
        return ("left",)


def test_the_caption_of_a_mirrored_picture_is_its_own():
    config = DataConfig(resolution=8, flip=True, threads=0, source="folder", path="x")
    batches = make_batches(Asymmetric(), config, 64, seed=0, with_text=True)
    batch = next(batches)
    batches.close()
    bright = np.where(batch["image"][:, 0, 0, 0] > 0, "left", "right")
    assert bright.tolist() == batch["captions"].tolist() and len(set(bright)) == 2


def png(width, height, orientation=1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (width, height), (9, 9, 9)).save(file, "PNG", exif=exif)
    return file.getvalue()


def test_a_folder_reads_boxes_and_counts_what_is_wrong(tmp_path):
    good = [{"name": "dog", "box": [0.5, 0, 0.75, 1]}, {"name": "cat", "box": [0, 0, 0.01, 1]}]
    rows = {
        "good.png": {"objects": good},
        "turned.png": {"objects": good, "captions": ["two pets"]},
        "none.png": {"captions": ["nothing"], "objects": []},
        "missing.png": {"captions": ["c"]},
        "outside.png": {"objects": [{"name": "dog", "box": [0, 0, 2, 1]}]},
        "flat.png": {"objects": [{"name": "dog", "box": [0, 0.5, 1, 0.5]}]},
        "text.png": {"objects": "dog"},
    }
    for name in rows:
        # Orientation 6 is a quarter turn: upright, both are 30 wide and 20 high.
        turned = name == "turned.png"
        (tmp_path / name).write_bytes(png(20, 30, 6) if turned else png(30, 20))
    lines = [json.dumps({"file_name": name} | row) for name, row in rows.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="folder", path=str(tmp_path), resolution=10, boxes_field="objects")
    report = SkipReport()
    source = FolderSource(config, report)
    assert len(source) == 3 and report.counts() == {
        layouts.NO_BOXES: 1,
        layouts.OUTSIDE: 1,
        layouts.NO_AREA: 1,
        layouts.NOT_A_LIST: 1,
    }
    assert source[0].captions == ("dog, cat",) and source[1].captions == ("two pets",)
    for index in (0, 1):  # the crop takes a sixth from each side, and the cat with it
        [box] = source[index].boxes
        np.testing.assert_allclose(box.corners, (0.5, 0, 0.875, 1), atol=1e-6)
    assert source[2].boxes == ()


def test_photographs_with_boxes(shared_data, tmp_path):
    """Every box of 20 photographs holds pixels of its class in the segmentation map beside it."""
    folder = shared_data("layout")
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").open()]
    rows = [row for row in rows if row["dataset"] == "balloon"][:20]
    lines = []
    for row in rows:
        name = row["image"].rpartition("/")[2]
        (tmp_path / name).write_bytes((folder / row["image"]).read_bytes())
        lines.append(json.dumps({"file_name": name, "objects": row["objects"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    config = DataConfig(source="folder", path=str(tmp_path), resolution=64, boxes_field="objects")
    source = FolderSource(config, SkipReport())
    assert len(source) == 20
    for index, row in enumerate(rows):
        mask = Image.open(folder / row["mask"]).convert("RGB")
        square = np.asarray(to_square(mask, 64, "center_crop"))[..., 0] > 0
        covered = np.zeros((64, 64), bool)
        for box in source[index].boxes:
            x0, y0, x1, y1 = (64 * value for value in box.corners)
            covered[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
        assert (square & covered).sum() >= 0.97 * square.sum()


def test_sources_without_boxes_take_no_column():
    with pytest.raises(ValueError, match="data.boxes_field = 'objects': must be empty, source 'sc"):
        DataConfig(boxes_field="objects").validate("data")


def test_samples_in_context_hold_no_masks():
    styles = StylesConfig(context=2)
    data = DataConfig(source="folder", path="x", styles=styles, mask_field="mask")
    with pytest.raises(ValueError, match="data.mask_field = 'mask': must be empty with data.styl"):
        data.validate("data")

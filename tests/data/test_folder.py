"""Folders with metadata.jsonl: captions, splits, damaged rows, real photographs."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data import decode
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError, SkipReport
from contextdiff_jax.data.folder import BAD_LINE, METADATA, NO_FILE_NAME, FolderSource
from contextdiff_jax.data.listed_files import (
    MISSING,
    NO_NAME,
    NOT_REGULAR,
    OUTSIDE,
    TOO_LARGE,
    NotReadable,
    read_listed,
)
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.system.printable import printable


def write(folder, rows, picture_bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    for i in range(4):
        (folder / f"{i}.png").write_bytes(picture_bytes(50 * i))


def open_folder(path, **options) -> tuple[FolderSource, SkipReport]:
    report = SkipReport()
    config = DataConfig(source="folder", path=str(path), resolution=16, **options)
    return FolderSource(config, report), report


def test_rows_and_captions(tmp_path, picture_bytes):
    rows = [
        {"file_name": "2.png", "captions": ["two", "", "deux"]},
        {"file_name": "0.png", "text": "zero", "title": "naught"},
    ]
    write(tmp_path, rows, picture_bytes)
    source, report = open_folder(tmp_path)
    assert len(source) == 2 and report.total == 0
    example = source[0]
    assert (example.image == 100).all() and example.image.shape == (16, 16, 3)
    assert example.captions == ("two", "deux") and example.key == "2.png"
    assert example.notes == (decode.BLANK_DROPPED,)
    assert source.captions(1) == ("zero",)
    source, report = open_folder(tmp_path, caption_fields=("title",))
    assert source.captions(0) == ("naught",)
    assert report.counts() == {decode.CAPTION_MISSING: 1}


def test_a_small_folder_is_decoded_once(tmp_path, picture_bytes):
    """One MiB holds 1,365 squares of 16 pixels."""
    rows = [{"file_name": f"{i}.png", "text": "a"} for i in (0, 1)] * 683
    write(tmp_path, rows, picture_bytes)
    every, _ = open_folder(tmp_path, keep_mib=1)  # one square too many
    none, _ = open_folder(tmp_path, keep_mib=0)
    kept, _ = open_folder(tmp_path, keep_mib=2)
    before = [source[0].image.copy() for source in (every, kept)]
    (tmp_path / "0.png").write_bytes(picture_bytes(150))
    np.testing.assert_array_equal(kept[0].image, before[1])
    assert (every[0].image == 150).all() and (none[0].image == 150).all()
    with pytest.raises(ValueError, match="read-only"):
        kept[0].image[:] = 0
    (tmp_path / "1.png").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(DamagedSample):
            kept[1]


def test_damaged_rows_are_counted_by_name(tmp_path, picture_bytes):
    rows = [
        {"file_name": "1.png", "text": "one"},
        "{not json",
        "[1, 2]",
        "",
        {"text": "no file"},
        {"file_name": "2.png", "text": "  "},
        {"file_name": "3.png", "other": 1},
        {"file_name": "gone.png", "text": "gone"},
        {"file_name": "3.png", "text": 7},
    ]
    write(tmp_path, rows, picture_bytes)
    source, report = open_folder(tmp_path)
    assert len(source) == 2
    assert {reason: tally.names for reason, tally in report.skipped.items()} == {
        NO_FILE_NAME: ("line 5",),
        decode.CAPTION_BLANK: ("2.png",),
        decode.CAPTION_MISSING: ("3.png",),
        decode.CAPTION_NOT_TEXT: ("3.png",),
    }
    assert report.files[BAD_LINE].names == ("metadata.jsonl line 2", "metadata.jsonl line 3")
    with pytest.raises(DamagedSample) as caught:
        source[1]
    key = "gone.png (line 8)"
    assert (caught.value.key, caught.value.reason) == (key, decode.IMAGE_MISSING)


@pytest.mark.timeout(120)  # a pipe would block
def test_names_of_anything_but_files_inside_are_damaged_samples(tmp_path, picture_bytes):
    folder = tmp_path / "data"
    write(folder, [], picture_bytes)
    (tmp_path / "outside.png").write_bytes(picture_bytes(1))
    os.mkfifo(folder / "pipe.png")
    (folder / "sub").mkdir()
    for name, target in {
        "loop.png": "loop.png",
        "out.png": "../outside.png",
        "zero.png": "/dev/zero",
        "up": "..",
        "in.png": "sub/../3.png",
        "gone.png": "nothing",
    }.items():
        (folder / name).symlink_to(target)
    with (folder / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    cases = {
        "../outside.png": OUTSIDE,
        "sub/../0.png": OUTSIDE,
        str(folder / "0.png"): OUTSIDE,
        "/dev/zero": OUTSIDE,
        "out.png": OUTSIDE,
        "zero.png": OUTSIDE,
        "up/outside.png": OUTSIDE,
        "pipe.png": NOT_REGULAR,
        "sub": NOT_REGULAR,
        "./": NOT_REGULAR,
        "huge.png": TOO_LARGE,
        "a" * 5000 + ".png": NO_NAME,
        "loop.png": NO_NAME,
        "a\0.png": NO_NAME,
        "\ud83d.png": NO_NAME,
        "gone.png": MISSING,
        "0.png/x.png": MISSING,
    }
    names = [*cases, "in.png", "./1.png"]
    write(folder, [{"file_name": name, "text": "t"} for name in names], picture_bytes)
    source, report = open_folder(folder)
    assert len(source) == len(names) and report.total == 0
    for index, (name, reason) in enumerate(cases.items()):
        with pytest.raises(DamagedSample) as caught:
            source[index]
        assert caught.value.reason == f"no usable image: {reason}", name
        assert caught.value.key == printable(f"{name[:80]} (line {index + 1})")
    assert (source[len(cases)].image == 150).all() and (source[len(cases) + 1].image == 50).all()
    probe(source, report=report)
    assert report.total == len(cases) and len(report.skipped) == 5


@pytest.mark.timeout(120)
def test_metadata_is_a_regular_file_inside(tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text('{"file_name": "0.png", "text": "a"}')
    makers = {
        NOT_REGULAR: (os.mkfifo, os.mkdir),
        OUTSIDE: (lambda path: os.symlink("/dev/zero", path),)
        + (lambda path: os.symlink("../elsewhere.jsonl", path),),
    }
    for reason, make in [(reason, make) for reason, some in makers.items() for make in some]:
        folder = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        make(folder / "metadata.jsonl")
        with pytest.raises(DataError, match=f"metadata.jsonl: {reason}; must be a regular file"):
            open_folder(folder)


def test_the_folder_itself_may_be_a_link(tmp_path, picture_bytes):
    write(tmp_path / "data", [{"file_name": "2.png", "text": "a"}], picture_bytes)
    (tmp_path / "link").symlink_to("data")
    assert (open_folder(tmp_path / "link")[0][0].image == 100).all()


@pytest.mark.parametrize("name", ["../other/0.png", "/0.png", "a/../../0.png"])
def test_names_in_a_bucket_stay_inside_too(name):
    with pytest.raises(NotReadable, match=OUTSIDE):
        read_listed("gs://bucket/data", name)


def test_pixels_are_limited(tmp_path, picture_bytes):
    write(tmp_path, [{"file_name": "2.png", "text": "a"}], picture_bytes)
    assert open_folder(tmp_path, max_pixels=24 * 24)[0][0].image.shape == (16, 16, 3)
    with pytest.raises(DamagedSample, match=decode.IMAGE_HUGE):
        open_folder(tmp_path, max_pixels=24 * 24 - 1)[0][0]


def test_rows_nested_without_end_and_infinite_numbers(tmp_path, picture_bytes):
    deep = "[" * 100_000 + "]" * 100_000
    write(tmp_path, [{"file_name": "s.png", "text": "sound"}], picture_bytes)
    with (tmp_path / METADATA).open("a") as file:
        file.write(f'\n{{"file_name": "0.png", "text": {deep}}}\n')
        file.write(f'{{"file_name": "1.png", "text": {"[" * 60}"x"{"]" * 60}}}\n')
        file.write('{"file_name": "2.png", "text": 1e999}\n{"file_name": 1e999, "text": "x"}\n')
    source, report = open_folder(tmp_path)
    assert len(source) == 1 and source.captions(0) == ("sound",)
    assert report.files[BAD_LINE].names == ("metadata.jsonl line 2",)
    assert report.skipped[decode.CAPTION_NOT_TEXT].names == ("1.png", "2.png")
    assert report.skipped[NO_FILE_NAME].names == ("line 5",)


def test_splits(tmp_path, picture_bytes):
    rows = [
        {"file_name": "0.png", "text": "a", "split": "train"},
        {"file_name": "1.png", "text": "b", "split": "val"},
    ]
    write(tmp_path, rows, picture_bytes)
    source, report = open_folder(tmp_path, split="val")
    assert len(source) == 1 and source.captions(0) == ("b",) and report.total == 0
    with pytest.raises(DataError, match="split 'test' has no rows .*: must be one of train, val"):
        open_folder(tmp_path, split="test")
    write(tmp_path / "test", [{"file_name": "3.png", "text": "own folder"}], picture_bytes)
    assert open_folder(tmp_path, split="test")[0].captions(0) == ("own folder",)
    write(tmp_path / "test", [{"file_name": "3.png", "text": "no splits"}], picture_bytes)
    with pytest.raises(DataError, match="split 'val': .* no such subfolder and .*must be 'train'"):
        open_folder(tmp_path / "test", split="val")


def test_clear_sentences(tmp_path, picture_bytes):
    with pytest.raises(DataError, match="no_such does not exist"):
        open_folder(tmp_path / "no_such")
    with pytest.raises(DataError, match="no metadata.jsonl in"):
        open_folder(tmp_path)
    write(tmp_path, [{"file_name": "0.png"}], picture_bytes)
    with pytest.raises(DataError, match="no usable sample in folder .*1 x no usable caption: miss"):
        open_folder(tmp_path)


def test_real_photographs(shared_data):
    folder = shared_data("photos")
    source, report = open_folder(folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(source) == len(rows) == 111 and report.total == 0
    for i in (0, 50, 110):
        example = source[i]
        assert example.captions == tuple(c.strip() for c in rows[i]["captions"])
        image = Image.open(folder / rows[i]["file_name"]).convert("RGB")
        edge = min(image.size)
        left, top = (image.width - edge) // 2, (image.height - edge) // 2
        square = image.crop((left, top, left + edge, top + edge))
        expected = np.asarray(square.resize((16, 16), Image.Resampling.BOX)).astype(int)
        assert np.abs(example.image - expected).mean() < 8

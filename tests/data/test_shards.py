"""Shards read in place: real ones, damaged ones, and small ones made here."""

import dataclasses
import grp
import io
import json
import pwd
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from contextdiff_jax.data import decode, index_cache, shard_index, tar_index
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError, SkipReport
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.shards import CAPTION_JSON, SHARD_MISSING, ShardSource, find_shards


def config_for(path, cache, **options) -> DataConfig:
    options = {"resolution": 16, "cache_dir": str(cache)} | options
    return DataConfig(source="shards", path=str(path), **options)


def open_shards(path, cache, **options) -> tuple[ShardSource, SkipReport]:
    report = SkipReport()
    return ShardSource(config_for(path, cache, **options), report), report


def test_random_access_in_order(tiny_shards, tmp_path):
    source, report = open_shards(tiny_shards, tmp_path)
    assert len(source) == 9 and report.total == 0
    for i in (8, 0, 5, 4, 7):
        example = source[i]
        assert (example.image == 20 * i).all() and example.image.shape == (16, 16, 3)
        assert example.captions == (f"sample {i}",) == source.captions(i)
        assert example.key == f"{i // 5:05d}/{i:05d}"
    for outside in (-1, 9):
        with pytest.raises(IndexError):
            source[outside]


def test_captions_from_the_json(tiny_shards, tmp_path):
    source, _ = open_shards(tiny_shards, tmp_path, caption_fields=("title",))
    assert source[6].captions == ("title 6",)
    source, _ = open_shards(tiny_shards, tmp_path, caption_fields=("no_such_key",))
    with pytest.raises(DamagedSample, match=decode.CAPTION_MISSING):
        source[6]


def test_original_size_filter(tiny_shards, tmp_path):
    source, report = open_shards(tiny_shards, tmp_path, min_original_side=300)
    assert [source.captions(i)[0] for i in range(len(source))] == [
        f"sample {i}" for i in range(3, 9)
    ]
    assert report.counts() == {shard_index.ORIGINAL_SMALL: 3}
    # The unfiltered index is another one in the cache.
    assert len(open_shards(tiny_shards, tmp_path)[0]) == 9


def test_shards_of_an_owner_without_a_name(tiny_shards, tmp_path, monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for module, name in ((pwd, "getpwuid"), (grp, "getgrgid")):
        monkeypatch.setattr(module, name, unknown)
    assert len(open_shards(tiny_shards, tmp_path)[0])


def test_an_index_that_cannot_be_kept_keeps_nobody_from_reading(tiny_shards, tmp_path, monkeypatch):
    def full(index, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_cache, "_save", full)
    assert len(open_shards(tiny_shards, tmp_path)[0])


def test_original_size_unknown_is_counted(tmp_path, picture_bytes, write_tar):
    members = []
    infinite = b'{"original_width": 1e999, "original_height": Infinity}'
    rows = (b"{", b"{}", b'{"original_width": null}', None, infinite, b"[" * 100_000)
    for key, row in zip("abcdfg", rows, strict=True):
        members += [(f"{key}.png", picture_bytes(9)), (f"{key}.txt", b"c")]
        members += [] if row is None else [(f"{key}.json", row)]
    row = json.dumps({"original_width": 400, "original_height": 400}).encode()
    members += [("e.png", picture_bytes(9)), ("e.json", row), ("e.txt", b"the one")]
    write_tar(tmp_path / "0.tar", members)
    source, report = open_shards(tmp_path, tmp_path / "cache", min_original_side=1)
    assert len(source) == 1 and source[0].captions == ("the one",)
    assert report.counts() == {shard_index.ORIGINAL_UNKNOWN: 6}


def test_order_of_members_and_long_names(tmp_path, picture_bytes, write_tar):
    long = "folder/" + "k" * 150
    members = [
        ("b.txt", b"caption first"),
        ("b.json", b"[1]"),
        ("b.PNG", picture_bytes(40)),
        (f"{long}.png", picture_bytes(80)),
        (f"{long}.txt", b"long name"),
    ]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_tar(tmp_path / "0.tar", members, format=form)
        source, report = open_shards(tmp_path, tmp_path / f"cache{form}")
        assert report.total == 0 and len(source) == 2
        assert source[0].captions == ("caption first",) and (source[0].image == 40).all()
        assert source[1].captions == ("long name",) and (source[1].image == 80).all()
    source, _ = open_shards(tmp_path, tmp_path / "json", caption_fields=("x",))
    assert len(source) == 1
    with pytest.raises(DamagedSample, match=CAPTION_JSON):
        source.captions(0)


def test_damaged_shards_match_the_cases(shared_data, tmp_path):
    """Every sample of cases.json, what is used of it, and the whole report."""
    folder = shared_data("damaged_shards")
    cases = json.loads((folder / "cases.json").read_text())
    source, report = open_shards(folder, tmp_path, resolution=32)
    used, reasons = {}, {}
    for i in range(len(source)):
        try:
            example = source[i]
            used[example.key] = example
        except DamagedSample as error:
            reasons[error.key] = error.reason
    at_index = {name: r for r, tally in report.skipped.items() for name in tally.names}
    for name, has in cases.items():
        key = f"00000/{name}"
        if has == "image; caption":
            assert key in used, name
        else:
            lacking = next(part for part in has.split("; ") if part.startswith("no "))
            assert (at_index | reasons)[key].startswith(lacking), name
            assert key not in used, name
    assert reasons == {
        "00000/truncated_jpeg": decode.IMAGE_TRUNCATED,
        "00000/html_as_jpeg": decode.IMAGE_HTML,
        "00000/blank_caption": decode.CAPTION_BLANK,
    }
    assert report.to_json() == {
        "total_skipped": 6,
        "skipped": {
            decode.IMAGE_EMPTY: {"count": 1, "names": ["00000/empty_file"]},
            decode.CAPTION_MISSING: {"count": 1, "names": ["00000/no_caption"]},
            decode.CAPTION_BLANK: {"count": 1, "names": ["00000/empty_caption"]},
            shard_index.DUPLICATE: {"count": 1, "names": ["00000/duplicate"]},
            decode.IMAGE_MISSING: {"count": 1, "names": ["00000/caption_only"]},
            shard_index.CUT_OFF: {"count": 1, "names": ["00002_truncated/g8"]},
        },
        "repaired": {},
        "files": {
            tar_index.TRUNCATED: {"count": 1, "names": ["00002_truncated"]},
            tar_index.EMPTY: {"count": 1, "names": ["00003_empty"]},
            tar_index.NOT_A_TAR: {"count": 1, "names": ["00004_not_a_tar"]},
        },
    }
    assert len(used) == 14 + 12 + 8
    check_contents(folder, used)


def check_contents(folder, used) -> None:
    images = {key.split("/")[1]: example.image for key, example in used.items()}
    assert (images["grey"] == images["grey"][..., :1]).all()
    assert (images["sixteen_bit_png"] == 40000 >> 8).all()
    assert images["one_pixel"].shape == (32, 32, 3)
    with tarfile.open(folder / "00000.tar") as tar:
        stored = Image.open(io.BytesIO(tar.extractfile("rotated_exif.jpg").read()))
    turned = ImageOps.exif_transpose(stored).resize((32, 32), Image.Resampling.LANCZOS)
    apart = np.abs(images["rotated_exif"].astype(int) - np.asarray(turned)).mean()
    plain = stored.resize((32, 32), Image.Resampling.LANCZOS)
    assert apart < 2 < np.abs(images["rotated_exif"].astype(int) - np.asarray(plain)).mean()
    assert used["00000/not_utf8"].captions == ("caf\u00e9 \u00ff\u00fe",)
    assert used["00000/not_utf8"].notes == (decode.LATIN_1,)
    assert used["00000/emoji_caption"].captions[0].endswith("\u738b\u51a0")
    assert len(used["00000/long_caption"].captions[0]) > 1000
    assert used["00000/duplicate"].captions == ("first of two",)


def test_the_whole_report_after_an_epoch(shared_data, tmp_path):
    folder = shared_data("damaged_shards")
    report = SkipReport()
    config = config_for(folder, tmp_path, min_side=2)
    source = ShardSource(config, report)
    batches = make_batches(source, config, len(source), seed=3, report=report)
    for _ in range(3):
        next(batches)
    batches.close()
    assert report.total == 6 + 3 + 1
    assert report.counts()[decode.IMAGE_SMALL] == 1
    assert report.counts()[decode.CAPTION_BLANK] == 2
    assert {r: t.names for r, t in report.repaired.items()} == {decode.LATIN_1: ("00000/not_utf8",)}


def test_real_shards_against_tarfile_and_pil(shared_data, tmp_path):
    folder = shared_data("emoji_shards")
    source, report = open_shards(folder, tmp_path, resolution=256)
    assert report.to_json()["files"] == {} and report.total == 0
    expected = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            expected += [(path.stem, name) for name in tar.getnames() if name.endswith(".jpg")]
    assert len(source) == len(expected)
    assert source.index_bytes <= 12 * len(source)
    for i in (0, 499, 500, len(source) - 1):
        stem, name = expected[i]
        with tarfile.open(folder / f"{stem}.tar") as tar:
            picture = Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB")
            text = tar.extractfile(name.replace(".jpg", ".txt")).read().decode()
        example = source[i]
        np.testing.assert_array_equal(example.image, np.asarray(picture))
        assert example.captions == (text.strip(),)
        assert example.key == f"{stem}/{name.removesuffix('.jpg')}"


def test_index_is_cached_per_file(tiny_shards, tmp_path, monkeypatch, picture_bytes, write_tar):
    shards, cache = tmp_path / "shards", tmp_path / "cache"
    shards.mkdir()
    for path in tiny_shards.glob("*.tar"):
        (shards / path.name).write_bytes(path.read_bytes())
    (shards / "00009.tar").write_bytes(b"no tar")
    _, report = open_shards(shards, cache)
    assert len(list(cache.iterdir())) == 3
    scanned = []
    scan = index_cache.scan_shard
    monkeypatch.setattr(
        index_cache, "scan_shard", lambda *args: scanned.append(args[1]) or scan(*args)
    )
    source, again = open_shards(shards, cache)
    assert scanned == [] and len(source) == 9 and source[8].captions == ("sample 8",)
    assert again.to_json() == report.to_json() and again.files
    write_tar(shards / "00001.tar", [("n.png", picture_bytes(1)), ("n.txt", b"new")])
    source, _ = open_shards(shards, cache)
    assert scanned == ["00001"] and len(source) == 6 and source[5].captions == ("new",)
    next(cache.glob("00000-*")).write_bytes(b"damaged index")
    source, _ = open_shards(shards, cache)
    assert scanned == ["00001", "00000"] and len(source) == 6


def test_index_lies_beside_the_shards_only_where_it_may(tiny_shards, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "0.tar").write_bytes((tiny_shards / "00000.tar").read_bytes())
    shards.chmod(0o555)
    open_shards(shards, "")
    assert [path.name for path in shards.iterdir()] == ["0.tar"]
    shards.chmod(0o755)
    open_shards(shards, "")
    assert len(list((shards / ".contextdiff_index").iterdir())) == 1
    assert len(open_shards(shards, "")[0]) == 5


def test_wildcards_and_ranges(tiny_shards, tmp_path):
    report = SkipReport()
    for pattern in ("", "/*.tar", "/0000?.tar", "/{00000..00001}.tar"):
        found = find_shards(f"{tiny_shards}{pattern}", report)
        assert [path.name for path in found] == ["00000.tar", "00001.tar"]
    assert find_shards(f"{tiny_shards.parent}/*/00001.tar", report)[0].stem == "00001"
    assert [p.name for p in find_shards(f"{tiny_shards}/00001.tar", report)] == ["00001.tar"]
    assert not report.files
    source, report = open_shards(f"{tiny_shards}/{{00001..00003}}.tar", tmp_path)
    assert len(source) == 4
    assert report.to_json()["files"] == {SHARD_MISSING: {"count": 2, "names": ["00002", "00003"]}}


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{0..3}.tar", "/0.tar", "/no_such_folder"])
def test_no_shard_is_one_clear_sentence(tmp_path, pattern):
    with pytest.raises(DataError, match="no tar shard at") as caught:
        open_shards(f"{tmp_path}{pattern}", tmp_path / "cache")
    assert str(tmp_path) in str(caught.value)


def test_the_sample_that_a_shard_ends_in_is_cut_off_not_without_caption(tiny_shards, tmp_path):
    """Shard 0 ends after 00004.png, so its caption is not missing but lost with the shard's end."""
    data = (tiny_shards / "00000.tar").read_bytes()
    with tarfile.open(tiny_shards / "00000.tar") as tar:
        picture = tar.getmember("00004.png")
    for end in (512, 512 + 100):
        blocks = -(-picture.size // 512)
        (tmp_path / "0.tar").write_bytes(data[: picture.offset + blocks * 512 + end])
        source, report = open_shards(tmp_path, tmp_path / f"cache{end}")
        assert len(source) == 4
        assert report.skipped[shard_index.CUT_OFF].names == ("0/00004",) and report.total == 1
        assert report.files[tar_index.TRUNCATED].names == ("0",)


def test_nothing_usable_left_says_why(tmp_path, write_tar):
    write_tar(tmp_path / "0.tar", [("a.txt", b"no image")])
    (tmp_path / "1.tar").write_bytes(b"")
    with pytest.raises(DataError, match="no usable sample in shards .*no usable image: missing"):
        open_shards(tmp_path, tmp_path / "cache")


def test_an_unreachable_shard_is_an_error_not_a_skip(tiny_shards, tmp_path):
    (tmp_path / "0.tar").write_bytes((tiny_shards / "00000.tar").read_bytes())
    (tmp_path / "1.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(DataError, match=r"shard .*1.tar cannot be read: .*No such file"):
        open_shards(tmp_path, tmp_path / "cache")


def test_a_shard_that_shrinks_in_use_is_an_error_not_a_skip(tiny_shards, tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes((tiny_shards / "00000.tar").read_bytes())
    source, _ = open_shards(path, tmp_path / "cache")
    with open(path, "r+b") as file:
        file.truncate(2000)
    with pytest.raises(DataError, match="changed while in use"):
        source[4]


def test_bucket_paths_are_read_through_epath(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("contextdiff_jax.data.shards.in_bucket", lambda path: True)
    source, _ = open_shards(tiny_shards, tmp_path)
    for i in (8, 0, 5):
        assert source.captions(i) == (f"sample {i}",) and (source[i].image == 20 * i).all()
    assert not source._files._files


def test_a_disk_that_fails_ends_the_run_and_a_sample_that_does_not(
    tiny_shards, tmp_path, monkeypatch
):
    source, _ = open_shards(tiny_shards, tmp_path)

    def fail(error):
        def raising(*_):
            raise error

        return raising

    with monkeypatch.context() as patch:
        patch.setattr(decode, "to_square", fail(ZeroDivisionError()))
        report = SkipReport()
        config = config_for(tiny_shards, tmp_path)
        batches = make_batches(source, config, 1, seed=0, report=report)
        with pytest.raises(DataError, match=r"9 x cannot be decoded \(ZeroDivisionError\)"):
            next(batches)
        batches.close()
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode_captions", fail(ZeroDivisionError()))
        with pytest.raises(DamagedSample, match=r"00000/00000: cannot be decoded"):
            source.captions(0)
    monkeypatch.setattr(source._files, "read", fail(OSError(5, "Input/output error")))
    for read in (source.__getitem__, source.captions):
        with pytest.raises(OSError, match="Input/output error"):
            read(0)


def test_what_lies_between_image_and_caption_is_not_read(
    tmp_path, picture_bytes, write_tar, monkeypatch
):
    """A film with the same key, say: more than one reading can give."""
    members = [("a.png", picture_bytes(7)), ("a.mp4", bytes(3 << 20)), ("a.txt", b"caption")]
    write_tar(tmp_path / "0.tar", members)
    source, _ = open_shards(tmp_path, tmp_path / "cache")
    read = source._files.read
    sizes = []
    monkeypatch.setattr(source._files, "read", lambda *args: sizes.append(args[2]) or read(*args))
    assert (source[0].image == 7).all() and source[0].captions == ("caption",)
    assert sum(sizes) < 5000


def test_members_that_are_too_large_are_counted(tmp_path, picture_bytes, write_tar, monkeypatch):
    limits = {shard_index.IMAGE_LARGE: 2000, shard_index.CAPTION_LARGE: 50}
    monkeypatch.setattr(shard_index, "MOST_BYTES", limits)
    large = json.dumps({"original_width": 900, "original_height": 900}).encode() + b" " * 50
    members = [
        *(("a.png", picture_bytes(1) + bytes(2000)), ("a.txt", b"c"), ("a.json", b"{}")),
        *(("b.png", picture_bytes(1)), ("b.txt", b"c" * 51), ("b.json", b"{}")),
        *(("c.png", picture_bytes(1)), ("c.txt", b"c"), ("c.json", large)),
        *(("d.png", picture_bytes(1)), ("d.txt", b"c"), ("d.json", b"{}")),
    ]
    write_tar(tmp_path / "0.tar", members)
    source, report = open_shards(tmp_path, tmp_path / "cache")
    assert len(source) == 2 and report.counts() == dict.fromkeys(limits, 1)
    with pytest.raises(DataError):
        open_shards(tmp_path, tmp_path / "cache", min_original_side=1)


def test_more_shards_than_files_stay_open(tmp_path, picture_bytes, write_tar, monkeypatch):
    from contextdiff_jax.data import shards as module

    monkeypatch.setattr(module, "_OPEN_FILES", 2)
    for i in range(6):
        write_tar(tmp_path / f"{i}.tar", [("a.png", picture_bytes(i)), ("a.txt", b"c")])
    config = config_for(tmp_path, tmp_path / "cache", threads=4)
    source = ShardSource(config, SkipReport())
    batches = make_batches(source, dataclasses.replace(config, shuffle=True), 6, seed=0)
    for _ in range(20):
        batch = next(batches)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    batches.close()
    assert len(source._files._files) == 2


def test_narrowest_integers():
    narrow = shard_index._narrow
    assert narrow(np.array([0, 255])).dtype == np.uint8
    assert narrow(np.array([0, 65536])).dtype == np.uint32
    assert narrow(np.array([-3, 200])).dtype == np.int16
    values = np.array([-70_000, 40])
    np.testing.assert_array_equal(narrow(values), values)
    assert narrow(np.zeros(0, np.int64)).shape == (0,)

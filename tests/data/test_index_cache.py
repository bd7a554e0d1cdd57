"""Stored indices: made anew where the shard was replaced, or somebody has written nonsense."""

import io
import json
import os

import numpy as np
import pytest

from contextdiff_jax.data import index_cache, shards
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.data.shards import ShardSource


def open_shards(path, cache) -> ShardSource:
    config = DataConfig(source="shards", path=str(path), resolution=16, cache_dir=str(cache))
    return ShardSource(config, SkipReport())


def contents(source: ShardSource) -> list[tuple[str, str, int]]:
    examples = [source[index] for index in range(len(source))]
    return [(e.key, e.captions[0], int(e.image[0, 0, 0])) for e in examples]


@pytest.fixture
def write(tmp_path, picture_bytes, write_tar):
    """Writes 0.tar with samples of these keys; always of the same size and time of change."""
    path = tmp_path / "0.tar"

    def make(keys: str, grey: int, caption: str = "caption", size: int = 40_960, **options):
        members = []
        for key in keys.split():
            text = f"{caption} {key}".encode()
            members += [(f"{key}.png", picture_bytes(grey)), (f"{key}.txt", text)]
        write_tar(path, members, **options)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (10**9, 10**9))
        return path

    return make


@pytest.fixture
def scanned(monkeypatch):
    """The shards that are scanned."""
    found = []
    scan = index_cache.scan_shard
    monkeypatch.setattr(
        index_cache, "scan_shard", lambda *args: found.append(args[1]) or scan(*args)
    )
    return found


@pytest.mark.parametrize("keys", ["n", "n m", "aa bb cc", "a b c d e f g"])
def test_a_shard_replaced_at_equal_size_and_time_is_scanned_again(write, tmp_path, scanned, keys):
    path = write("a b c", 50)
    assert contents(open_shards(path, tmp_path / "cache"))[0] == ("0/a", "caption a", 50)
    write(keys, 90, "another caption of")
    for _ in range(2):  # the second time from the index made anew
        source = open_shards(path, tmp_path / "cache")
        expected = [(f"0/{key}", f"another caption of {key}", 90) for key in keys.split()]
        assert contents(source) == expected
    assert scanned == ["0", "0"]


def test_a_shard_replaced_by_its_like_is_read_by_the_index_it_has(write, tmp_path, scanned):
    open_shards(write("a b c", 50), tmp_path / "cache")
    source = open_shards(write("a b c", 60, "capTION"), tmp_path / "cache")
    assert contents(source)[1] == ("0/b", "capTION b", 60) and scanned == ["0"]


def test_a_shard_replaced_in_use_is_read_by_a_new_index(write, tmp_path, caplog):
    path = write("a b c", 50)
    source = open_shards(path, tmp_path / "cache")
    source[0]
    write("x y z", 70, "a longer caption")
    assert contents(source) == [(f"0/{key}", f"a longer caption {key}", 70) for key in "xyz"]
    assert [message for message in caplog.messages if "was replaced" in message] == [
        f"shard {path} was replaced: it is indexed again"
    ]
    write("x y", 70)
    with pytest.raises(DataError, match="its index has 3 samples, it now has 2; start the same"):
        contents(source)


def test_members_whose_size_stands_in_a_pax_header(tmp_path, picture_bytes, scanned):
    """The member's own header says another size: the index is right, and not made again."""
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a.png", picture_bytes(30)), ("a.txt", b"text")):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {"size": str(len(data))}
            tar.addfile(info, io.BytesIO(data))
    data = bytearray(buffer.getvalue())
    for at in range(0, len(data), 512):
        if data[at : at + 5] == b"a.png":
            data[at + 124 : at + 136] = b"0" * 11 + b"\0"
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path = tmp_path / "0.tar"
    path.write_bytes(data)
    source = open_shards(path, tmp_path / "cache")
    for _ in range(3):
        assert contents(source) == [("0/a", "text", 30)]
    assert scanned == ["0", "0"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_a_damaged_shard(write, tmp_path, make):
    write("a", 50)
    make(tmp_path / "1.tar")
    report = SkipReport()
    source = ShardSource(
        DataConfig(source="shards", path=str(tmp_path), cache_dir=str(tmp_path / "cache")), report
    )
    assert len(source) == 1
    assert report.to_json()["files"] == {index_cache.NOT_A_FILE: {"count": 1, "names": ["1"]}}
    with pytest.raises(DataError, match="damaged files: 1 x a folder, pipe or device"):
        open_shards(tmp_path / "1.tar", tmp_path / "cache")


def test_a_shard_whose_name_is_as_long_as_names_may_be(write, tmp_path, scanned):
    path = write("a", 50).rename(tmp_path / ("\u738b" * 83 + ".tar"))
    for _ in range(2):
        assert len(open_shards(path, tmp_path / "cache")) == 1
    assert len(scanned) == 1


def test_a_shard_that_cannot_be_listed_is_damaged_and_named(write, tmp_path, monkeypatch):
    path = write("a", 50)

    def stumble(*_):
        raise ArithmeticError("unforeseen")

    monkeypatch.setattr(index_cache, "scan_shard", stumble)
    index = index_cache.index_shard(shards.epath.Path(path), shards.IndexOptions(), None)
    assert len(index) == 0
    assert index.report.summary()[1] == "damaged files: 1 x cannot be listed (ArithmeticError) (0)"
    for error in (OSError(5, "Input/output error"), MemoryError()):
        monkeypatch.setattr(index_cache, "scan_shard", lambda *_, e=error: (_ for _ in ()).throw(e))
        with pytest.raises(type(error)):
            index_cache.index_shard(shards.epath.Path(path), shards.IndexOptions(), None)


def text(content: str) -> np.ndarray:
    return np.frombuffer(content.encode(), np.uint8)


HOSTILE = {
    "outside": {"image_block": np.array([1, 5, 10**9])},
    "negative": {"image_size": np.array([80, -80, 80])},
    "before the shard": {"text_gap": np.array([2, -9, 2])},
    "beyond 64 bits": {"text_size": np.array([9, 9, 2**64 - 1], np.uint64)},
    "another length": {"text_size": np.array([9, 9])},
    "floats": {"image_size": np.array([80.0, 80.0, 80.0])},
    "not a list": {"image_size": np.array(80)},
    "objects": {"image_size": np.array([{}, [], None], object)},
    "a bomb": {"text_gap": np.zeros(10**8, np.uint8)},
    "report a list": {"report": text("[]")},
    "report too deep": {"report": text("[" * 10**5)},
    "count infinite": {
        "report": text('{"skipped": {"x": {"count": 1e999, "names": []}}, "repaired": {}}')
    },
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_an_index_of_nonsense_is_made_again(write, tmp_path, scanned, caplog, changes):
    path = write("a b c", 50)
    expected = contents(open_shards(path, tmp_path / "cache"))
    (file,) = (tmp_path / "cache").iterdir()
    sound = dict(np.load(file))
    np.savez_compressed(file, **sound)
    assert contents(open_shards(path, tmp_path / "cache")) == expected and scanned == ["0"]
    np.savez_compressed(file, **(sound | changes))
    assert contents(open_shards(path, tmp_path / "cache")) == expected and scanned == ["0", "0"]
    assert any("cannot be read" in message for message in caplog.messages)


def test_names_in_a_stored_report_cannot_command_a_terminal(write, tmp_path):
    path = write("a b c", 50)
    open_shards(path, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    report = SkipReport().to_json()
    report["skipped"] = {"blank\x1b[2J": {"count": 1, "names": ["\x9b31m"]}}
    content = dict(np.load(file)) | {"report": text(json.dumps(report))}
    np.savez(file, **content)
    found = SkipReport()
    config = DataConfig(source="shards", path=str(path), cache_dir=str(tmp_path / "cache"))
    ShardSource(config, found)
    assert found.summary()[1] == "skipped: 1 x blank\\x1b[2J (\\x9b31m)"

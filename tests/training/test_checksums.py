"""Checksums find whatever changes in a folder after they were recorded."""

import json
import os
import shutil
import zlib

import pytest
from etils import epath

from contextdiff_jax.training import checksums

# By algorithm: of "123456789" and of 1,000 zeros. Of XXH3 what xxhsum -H3 (0.8.1) prints; of CRC-32
# the published check value (ITU-T V.42, gzip, PNG) and what gzip writes.
KNOWN = {
    "xxh3_64": {b"123456789": 0x72DCB18B67A17DFF, bytes(1000): 0x24C1EA6074DD588C},
    "crc32": {b"123456789": 0xCBF43926, bytes(1000): 0x060B1780},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three small files, recorded in chunks of 4 bytes."""
    monkeypatch.setattr(checksums, "_CHUNK", 4)
    monkeypatch.setattr(checksums, "_BLOCK", 3)
    folder = epath.Path(tmp_path / "saved")
    (folder / "d").mkdir(parents=True)
    (folder / "manifest").write_bytes(b"manifest")
    (folder / "d/array").write_bytes(bytes(range(10)))
    (folder / "empty").write_bytes(b"")
    checksums.record(folder)
    return folder


def files(folder):
    return json.loads((folder / checksums.NAME).read_text())["files"]


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize("algorithm", KNOWN)
def test_the_sum_is_the_known_one(algorithm, block, tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", block)
    for content, value in KNOWN[algorithm].items():
        (tmp_path / "file").write_bytes(content)
        assert checksums._of_file(epath.Path(tmp_path / "file"), algorithm) == [len(content), value]


def of_earlier_version(folder):
    """Writes what versions without a name for the algorithm wrote: CRC-32, by zlib alone."""
    found = {}
    for name in ("manifest", "d/array", "empty"):
        content = (folder / name).read_bytes()
        sums = [zlib.crc32(content[i : i + 4]) for i in range(0, len(content), 4)]
        found[name] = [len(content), *sums]
    own = zlib.crc32(json.dumps(found, sort_keys=True).encode())
    text = json.dumps({"files": found, "of_files": own}, sort_keys=True)
    (folder / checksums.NAME).write_text(text)


def test_what_is_whole_is_found_whole(folder):
    assert {name: values[0] for name, values in files(folder).items()} == {
        "manifest": 8,
        "d/array": 10,
        "empty": 0,
    }
    assert checksums.damage(folder) is None


@pytest.mark.parametrize("record", [of_earlier_version, checksums.record])
def test_every_flipped_bit_is_found(record, folder):
    record(folder)
    for path in [folder / "manifest", folder / "d/array", folder / checksums.NAME]:
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            found = checksums.damage(folder)
            assert found and found.startswith(f"{path.relative_to(folder)}: "), (path, bit)
        path.write_bytes(whole)
    assert checksums.damage(folder) is None


def in_place_of(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "d/array").write_bytes(bytes(range(9))), "d/array: has 9 bytes of 10"),
        (lambda f: (f / "empty").write_bytes(b"\0"), "empty: has 1 bytes of 0"),
        (lambda f: (f / "d/array").unlink(), "d/array: is missing"),
        (lambda f: shutil.rmtree(f / "d"), "d/array: is missing"),
        (lambda f: in_place_of(f / "manifest"), "manifest: "),
        (lambda f: (f / "d/more").write_bytes(b""), "d/more: was not there when"),
        (lambda f: (f / checksums.NAME).write_bytes(b""), "checksums.json: differs"),
        (lambda f: (f / checksums.NAME).write_bytes(b"\xff\xfe"), "checksums.json: differs"),
        (lambda f: (f / checksums.NAME).write_text("[" * 10**5), "checksums.json: differs"),
        (lambda f: (f / checksums.NAME).write_text('{"files": [1]}'), "checksums.json: differs"),
        (lambda f: (f / checksums.NAME).unlink(), "checksums.json: is missing"),
    ],
)
def test_other_damage_is_found_and_named(harm, words, folder):
    harm(folder)
    assert checksums.damage(folder).startswith(words)


def test_an_algorithm_of_a_later_version_is_no_damage(folder):
    _, listed = checksums._read(folder)
    checksums._write(folder, listed, "xxh5")
    with pytest.raises(ValueError, match="algorithm = 'xxh5' in .*: this version knows xxh3_64, c"):
        checksums.damage(folder)


@pytest.mark.parametrize("record", [of_earlier_version, checksums.record])
def test_files_that_may_be_there_unlisted(record, folder):
    record(folder)
    (folder / "later").write_text("")
    (folder / f"{checksums.NAME}.0123.tmp").write_text("of a killed writer")
    assert checksums.damage(folder, may_be_unlisted=["later"]) is None
    assert checksums.damage(folder, may_be_unlisted=None) is None
    checksums.add(folder, ["later"])
    assert checksums.damage(folder) is None
    (folder / "later").write_text("x")
    assert checksums.damage(folder) == "later: has 1 bytes of 0"


def test_each_of_several_finds_what_lies_in_its_part(folder):
    (folder / "manifest").write_bytes(b"maniFest")  # the last of five chunks
    found = [checksums.damage(folder, index=index, count=3) for index in range(3)]
    assert found == [None, "manifest: differs from when it was saved", None]


def test_what_was_found_whole_is_not_read_again_until_it_changes(folder, monkeypatch):
    assert checksums.damage(folder) is None
    read, of_chunk = [], checksums._of_chunk
    monkeypatch.setattr(checksums, "_of_chunk", lambda *a: read.append(a) or of_chunk(*a))
    assert checksums.damage(folder) is None and not read
    stat = os.stat(folder / "manifest")
    (folder / "manifest").write_bytes(b"maniFest")
    os.utime(folder / "manifest", ns=(0, stat.st_mtime_ns + 1))
    assert checksums.damage(folder) and read


def test_a_folder_below_with_its_own_speaks_for_itself(folder):
    checksums.record(folder / "d")
    checksums.record(folder)
    assert set(files(folder)) == {"manifest", "empty", f"d/{checksums.NAME}"}
    (folder / "d/array").unlink()
    assert checksums.damage(folder) is None and checksums.damage(folder / "d")


def test_in_a_bucket(bucket):
    folder = epath.Path(bucket) / "tree"
    (folder / "d").mkdir(parents=True)
    (folder / "d/array").write_bytes(bytes(10))
    checksums.record(folder)
    assert checksums.damage(folder) is None
    (folder / "d/array").write_bytes(bytes(9) + b"\1")
    checksums.forget()  # the time of this bucket's files is in whole seconds
    assert checksums.damage(folder) == "d/array: differs from when it was saved"

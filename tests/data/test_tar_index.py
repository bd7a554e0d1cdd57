"""The header reader against Python's tarfile, and on tars that end early or are none."""

import io
import tarfile

import numpy as np
import pytest

from contextdiff_jax.data import tar_index

RNG = np.random.default_rng(0)
MEMBERS = [
    ("a.jpg", RNG.bytes(1000)),
    ("a.txt", b""),
    ("folder/b.jpg", RNG.bytes(512)),
    ("x" * 140 + "/" + "y" * 90 + ".jpg", RNG.bytes(3)),
    ("caf\u00e9/" + "z" * 300 + ".txt", RNG.bytes(700)),
    ("last.json", b"{}"),
]


def make(members, form=tarfile.USTAR_FORMAT, extra=()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info in extra:
            tar.addfile(info)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listing(data: bytes) -> tar_index.TarListing:
    return tar_index.list_members(tar_index.Window(io.BytesIO(data), len(data)))


def by_tarfile(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_agrees_with_tarfile(form):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    data = make(MEMBERS, form, extra=(link, folder))
    found = listing(data)
    assert found.damage is None and found.partial == []
    assert [tuple(member) for member in found.members] == by_tarfile(data)
    for (_, content), member in zip(MEMBERS, found.members, strict=True):
        assert data[member.offset : member.offset + member.size] == content


def test_ustar_prefix():
    data = make(MEMBERS[:4])
    assert [tuple(member) for member in listing(data).members] == by_tarfile(data)


def test_larger_than_the_reading_window(monkeypatch):
    monkeypatch.setattr(tar_index, "_CHUNK", 1500)
    data = make(MEMBERS, tarfile.PAX_FORMAT)
    assert [tuple(member) for member in listing(data).members] == by_tarfile(data)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_cut_anywhere_keeps_the_complete_members(form):
    data = make(MEMBERS, form)
    whole = by_tarfile(data)
    end = whole[-1][1] + 512
    for cut in range(1, end, 100):
        found = listing(data[:cut])
        complete = [member for member in whole if member[1] + member[2] <= cut]
        assert [tuple(member) for member in found.members] == complete, cut
        expected = tar_index.NOT_A_TAR if cut < 512 else tar_index.TRUNCATED
        assert found.damage == expected, cut
        begun = [name for name, offset, size in whole if offset <= cut < offset + size]
        assert found.partial == begun, cut


def test_cut_between_members_is_noticed():
    data = make(MEMBERS[:3])
    last = by_tarfile(data)[-1]
    found = listing(data[: last[1] + 512])
    assert len(found.members) == 3 and found.damage == tar_index.TRUNCATED


def test_no_tar_at_all():
    assert listing(b"").damage == tar_index.EMPTY
    assert listing(b"this is not a tar file\n" * 100).damage == tar_index.NOT_A_TAR
    assert listing(RNG.bytes(5000)).damage == tar_index.NOT_A_TAR
    assert listing(b"short").damage == tar_index.NOT_A_TAR
    empty = listing(make([]))
    assert empty.damage is None and empty.members == []


def test_corrupt_header_in_the_middle_ends_the_listing():
    data = bytearray(make(MEMBERS[:3]))
    third_header = by_tarfile(bytes(data))[2][1] - 512
    data[third_header + 3] ^= 1
    found = listing(bytes(data))
    assert len(found.members) == 2 and found.damage == tar_index.CORRUPT


def test_sizes_of_8_gib_and_more():
    info = tarfile.TarInfo("big.jpg")
    info.size = 9 * 2**30
    gnu = info.tobuf(tarfile.GNU_FORMAT)
    assert tar_index.own_size(gnu) == 9 * 2**30
    pax = info.tobuf(tarfile.PAX_FORMAT)
    found = listing(pax + b"x" * 100)
    assert found.partial == ["big.jpg"] and found.damage == tar_index.TRUNCATED

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


def forged(data: bytes, field: int, value: bytes, header: int = 0) -> bytes:
    """The archive with a field of a header replaced and its checksum right."""
    block = bytearray(data[header : header + 512])
    block[field : field + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:header] + bytes(block) + data[header + 512 :]


class CountingWindow(tar_index.Window):
    """Refuses more readings than a listing that goes forwards can need."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), len(data))
        self.left, self.largest = 2 + 2 * len(data) // 512, 0

    def read(self, offset: int, count: int) -> bytes:
        self.left -= 1
        self.largest = max(self.largest, count)
        assert self.left >= 0, "the listing goes in circles"
        return super().read(offset, count)


@pytest.mark.parametrize(
    "value",
    [b"-0000001000\0", b"-7777777777\0", b"+0000001000\0", b"0000_00010\0\0", b"\xff" * 12],
)
def test_only_a_whole_number_is_a_size(value):
    data = make(MEMBERS[:3])
    for header, members, damage in ((0, 0, tar_index.NOT_A_TAR), (1536, 1, tar_index.CORRUPT)):
        found = tar_index.list_members(CountingWindow(forged(data, 124, value, header)))
        assert (len(found.members), found.damage) == (members, damage)


@pytest.mark.parametrize("value", [b"77777777777\0", b"\x80" + b"\xff" * 11])
def test_a_size_beyond_the_file_is_a_cut_off_member(value):
    found = tar_index.list_members(CountingWindow(forged(make(MEMBERS[:3]), 124, value)))
    assert found.damage == tar_index.TRUNCATED and found.partial == ["a.jpg"]


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An archive that begins with an extended header of these records."""
    info = tarfile.TarInfo("extended")
    info.type, info.size = kind, len(records)
    padded = records.ljust(-(-len(records) // 512) * 512, b"\0")
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + make(MEMBERS[:2])


@pytest.mark.parametrize(
    "records",
    [
        b"4513 size=" + b"9" * 4502 + b"\n",  # Python reads no number of more than 4,300 digits
        *(b"12 size=-512\n", b"13 size=1e300\n", b"10 size=\n\n\n", b"3 size=1\n", b"99 path=a\n"),
        *(b"10 path=abc", b"=" * 700, b"9" * 700),
    ],
)
def test_a_pax_record_that_is_none_is_a_corrupt_header(records):
    found = tar_index.list_members(CountingWindow(pax(records)))
    assert found.members == [] and found.damage == tar_index.CORRUPT


def test_many_pax_records_are_gone_over_once():
    """A byte string that counts what is copied of it: the rest, for every record, takes minutes."""

    class Counted(bytes):
        copied = 0

        def __getitem__(self, key):
            found = super().__getitem__(key)
            Counted.copied += len(found) if isinstance(key, slice) else 1
            return Counted(found) if isinstance(key, slice) else found

    records = Counted(b"5 a=\n" * 20_000 + b"12 path=new\n")
    assert tar_index._extension(b"x", records) == {"path": "new"}
    assert Counted.copied < 2 * len(records)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_an_extended_header_as_large_as_a_file_is_not_read(kind):
    window = CountingWindow(pax(b"1048590 comment=".ljust(1048589, b"x") + b"\n", kind))
    found = tar_index.list_members(window)
    assert found.damage == tar_index.CORRUPT and window.largest == 512
    allowed = pax(b"1000000 comment=".ljust(999_999, b"x") + b"\n", kind)
    assert tar_index.list_members(CountingWindow(allowed)).damage is None


def test_a_pax_size_is_of_the_member_not_of_another_header():
    """As in tarfile, where a GNU long name stands between."""
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 4
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 13
    head = info.tobuf(tarfile.USTAR_FORMAT) + b"13 size=1000\n".ljust(512, b"\0")
    head += long.tobuf(tarfile.USTAR_FORMAT) + b"new\0".ljust(512, b"\0")
    found = listing(head + forged(make(MEMBERS[:2]), 124, b"00000000000\0"))
    assert found.damage is None
    assert [(member.name, member.size) for member in found.members] == [("new", 1000), ("a.txt", 0)]

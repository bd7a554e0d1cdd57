"""Damaged and hostile folders of data, which tests and benchmarks.mutations read."""

import dataclasses
import io
import json
import os
import pathlib
import random
import tarfile
from collections.abc import Callable, Sequence

from PIL import Image

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.sources import open_source

SIDE = 16  # of the pictures
_BLOCK = 512
_SOUND = {"s0": 10, "s1": 200}  # grey value by name
_MEMBERS = ("a", "b", "c")  # keys of the mutated shard
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
_STRANGE = (
    *("\x1b]0;title\x07\x1b[2J", "\u202ereversed\u2066", "\ud800", "x\0y", "..\\..", "a\nb"),
    *("\x9b31m", "\u200b", "\U000e0041", "-rf", "%s%n{}", "z" * 3000, ""),
)
_NUMBERS = ("1e999", "-1e999", "Infinity", "NaN", "1" * 5000, "-1", "1e-400", "true", "null")


@dataclasses.dataclass
class Input:
    """A folder of data, how it is opened, and what must come of it.

    expected: by name, the grey value of pictures that must come whole; their captions have it.
    """

    config: DataConfig
    expected: dict[str, int]


def picture(grey: int, kind: str = "PNG", side: int = SIDE) -> bytes:
    """Returns a flat picture of this grey value, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (grey,) * 3).save(buffer, kind)
    return buffer.getvalue()


def tar(members: Sequence[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Returns an archive of (name, data)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key: str, grey: int, **parts: bytes) -> list[tuple[str, bytes]]:
    """Returns the members of a sample that every way of reading can use, with `parts` replaced."""
    row = {"caption": f"caption {key}", "original_width": 900, "original_height": 900}
    usual = {"png": picture(grey), "txt": f"caption {key}".encode(), "json": _json(row)}
    return [(f"{key}.{kind}", data) for kind, data in (usual | parts).items()]


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def mutated(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Returns the data with one to eight places damaged, and where the first of them is."""
    changed, first = bytearray(data), len(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        first = min(first, place)
        length = rng.choice((1, 4, 100, 1000))
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            del changed[place:]
        elif kind == 3:
            changed[place:place] = changed[max(0, place - length) : place]
        elif kind == 4:
            changed[place : place + length] = rng.randbytes(min(length, len(changed) - place))
        else:
            changed[place : place + length] = bytes(min(length, len(changed) - place))
    return bytes(changed), first


def forged_header(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Returns the archive with a field of a header replaced and its checksum right."""
    begin = rng.choice(_headers(data)) if _headers(data) else 0
    header = bytearray(data[begin : begin + _BLOCK])
    field, size = rng.choice(((124, 12), (124, 12), (156, 1), (0, 100), (345, 155), (148, 8)))
    values = (
        *(b"-0000001000\0", b"-7777777777\0", b"77777777777\0", b"+1_0", b"0x10", b" 1000 \0"),
        *(b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(10) + b"\x07", b"9" * 12),
        *(b"x", b"g", b"L", b"K", b"S", b"1", b"5", b"6", b"V", rng.randbytes(size)),
        *(rng.choice(_STRANGE).encode("utf-8", "surrogatepass"), b"/" * 99, b"." * 99),
    )
    header[field : field + size] = rng.choice(values)[:size].ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:begin] + bytes(header) + data[begin + _BLOCK :], begin


def _headers(data: bytes) -> list[int]:
    blocks = range(0, len(data) - _BLOCK + 1, _BLOCK)
    return [at for at in blocks if data[at + 257 : at + 262] == b"ustar"]


def pax_archive(rng: random.Random) -> bytes:
    """Returns an archive whose first member has a strange pax header."""
    digits = rng.choice((b"9" * 4500, b"9" * 19, b"-512", b"1e3", b"0", b"\xff", b"1000"))
    record = rng.choice(
        (
            *(b"%d size=%s\n" % (len(digits) + 8, digits), b"99999 path=x\n", b"9 path=a\n"),
            *(b"5 a=\n" * rng.choice((3, 60_000)), b"=" * 700, b"1" * 700, b"3 size=\n"),
            b"20 path=\x1b[31m.png\n\n\n",
        )
    )
    info = tarfile.TarInfo("pax")
    info.type, info.size = rng.choice((tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)), len(record)
    padded = record.ljust(-(-len(record) // _BLOCK) * _BLOCK, b"\0")
    members = [member for key in _MEMBERS for member in sample(key, 100)]
    return info.tobuf(tarfile.USTAR_FORMAT) + padded + tar(members)


def strange_value(rng: random.Random, depth: int = 0) -> str:
    """Returns the text of some JSON value, or of what is almost one."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(_NUMBERS)
    if kind == 1:
        levels = rng.choice((10, 90, 500, 985, 1005, 50_000))
        opened, closed = rng.choice((("[", "]"), ('{"text":', "}")))
        return opened * levels + '"x"' + closed * rng.choice((levels, levels, 0))
    if kind in (2, 3) and depth < 3:
        values = [strange_value(rng, depth + 1) for _ in range(rng.randrange(4))]
        if kind == 2:
            return f"[{', '.join(values)}]"
        names = rng.choices(("text", "caption", "split", "a", *_STRANGE), k=len(values))
        pairs = zip(names, values, strict=True)
        return "{" + ", ".join(f"{_json(name).decode()}: {value}" for name, value in pairs) + "}"
    if kind == 4:
        return '"' + "w" * rng.choice((0, 200, 80_000, 200_000)) + '"'
    if kind == 5:
        return rng.choice(('"\\ud800"', '"\\u0000"', '"\\u001b[2J"', '"', '"\\', "{", "[[", "\x00"))
    return _json(rng.choice(_STRANGE)).decode()


def strange_row(rng: random.Random, **usual: object) -> bytes:
    """Returns a JSON object with one to three strange values in it."""
    row = {key: _json(value).decode() for key, value in usual.items()}
    for key in rng.sample(sorted(row), rng.randint(1, min(3, len(row)))):
        row[key] = strange_value(rng)
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in row.items()) + "}"
    data = text.encode("utf-8", "surrogatepass")
    return data if rng.random() < 0.8 else mutated(data, rng)[0]


def make_tar(folder: pathlib.Path, rng: random.Random) -> Input:
    """A shard damaged somewhere, beside a sound one."""
    members, first = [member for key in _MEMBERS for member in sample(key, 100)], 0
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    if rng.random() < 0.3:
        parent = rng.choice(("k" * 120, "caf\u00e9"))
        members = [(f"{parent}/{name}", data) for name, data in members]
        form = rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    data = tar(members, form)
    kind = rng.randrange(4)
    if kind == 0:
        data, first = forged_header(data, rng)
    elif kind == 1:
        data = pax_archive(rng)
    elif kind == 2 and rng.random() < 0.1:
        data = rng.choice((b"", b"no tar" * 300, bytes(10_000), rng.randbytes(4000)))
    else:
        data, first = mutated(data, rng)
    return shards(folder, data, dict.fromkeys(_whole_before(members, form, first), 100))


def _whole_before(members: list[tuple[str, bytes]], form: int, first: int) -> list[str]:
    """Returns the names of the samples that end before byte `first` of the archive, by tarfile."""
    keys = []
    for count in range(3, len(members) + 1, 3):
        # The archive of so many samples, less its end marker, is how the whole one begins.
        with tarfile.open(fileobj=io.BytesIO(tar(members[:count], form))) as archive:
            last = archive.getmembers()[-1]
        # The sample after it begins the next header: only then is this one known to be whole.
        if last.offset_data + -(-last.size // _BLOCK) * _BLOCK <= first:
            keys.append(_MEMBERS[count // 3 - 1])
    return keys


def make_kind_of_file(folder: pathlib.Path, rng: random.Random) -> Input:
    """A pipe, a folder or a strange name in the place of a shard."""
    found = shards(folder, None, {})
    place = folder / rng.choice(("0.tar", "\x1b[2J\u202e.tar", "\udcff.tar", "a\nb.tar"))
    make = rng.choice((os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"no tar")))
    make(place)
    return found


def make_picture(folder: pathlib.Path, rng: random.Random) -> Input:
    """A picture damaged somewhere, in a shard or in a folder."""
    kind = rng.choice(_FORMATS)
    data, _ = mutated(picture(100, kind, rng.choice((SIDE, 40, 300))), rng)
    data = rng.choice((data, data, data, b"%!PS-Adobe-3.0 EPSF-3.0\n" + data, b"<html>", b"\0" * 9))
    if rng.random() < 0.5:
        members = [*sample("a", 100), *sample("b", 100, png=data), *sample("c", 100)]
        return shards(folder, tar(members), {"a": 100, "c": 100})
    (folder / "a.png").write_bytes(data)
    row = _json({"file_name": "a.png", "text": "damaged"})
    return _folder(folder, [row])


def make_json(folder: pathlib.Path, rng: random.Random) -> Input:
    """A strange JSON member, read for captions, for sizes, or both."""
    row = strange_row(rng, caption="c", original_width=900, original_height=900, other=1)
    members = [*sample("a", 100), *sample("b", 100, json=row), *sample("c", 100)]
    found = shards(folder, tar(members), {"a": 100, "c": 100})
    fields = rng.choice(((), ("caption",), ("caption", "caption/text"), ("other/a/b", "caption")))
    changes = {"caption_fields": fields, "min_original_side": rng.choice((0, 100))}
    return dataclasses.replace(found, config=dataclasses.replace(found.config, **changes))


def make_caption(folder: pathlib.Path, rng: random.Random) -> Input:
    """A strange caption in a .txt member, under a strange name."""
    caption = rng.choice((*_STRANGE, "w" * 80_000, "\x1c" * 9000, "w " * 60_000))
    data, _ = mutated(caption.encode("utf-8", "surrogatepass") + b" ", rng)
    strange = [("\x1b[31m" + name, part) for name, part in sample("b", 100, txt=data)]
    return shards(
        folder, tar([*sample("a", 100), *strange, *sample("c", 100)]), {"a": 100, "c": 100}
    )


def make_row(folder: pathlib.Path, rng: random.Random) -> Input:
    """Strange rows in metadata.jsonl."""
    rows = [
        strange_row(rng, file_name="s0.png", text=["caption"], captions=None, other="x")
        for _ in range(rng.randint(1, 4))
    ]
    found = _folder(folder, rows)
    fields = rng.choice(((), ("text",), ("text", "captions/text")))
    return dataclasses.replace(
        found, config=dataclasses.replace(found.config, caption_fields=fields)
    )


def make_index(folder: pathlib.Path, rng: random.Random) -> Input:
    """An index file damaged somewhere, or of a shard replaced at equal size and time."""
    members = [member for key in _MEMBERS for member in sample(key, 100)]
    found = shards(folder, tar(members), dict.fromkeys(_MEMBERS, 100))
    open_source(found.config)
    if rng.random() < 0.7:
        for stored in sorted((folder / "cache").iterdir()):
            stored.write_bytes(mutated(stored.read_bytes(), rng)[0])
        return found
    shard, keys = folder / "0.tar", rng.sample(("n", "mm", "ooo"), rng.randint(1, 3))
    before, data = shard.stat(), tar([m for key in keys for m in sample(key, 50)])
    shard.write_bytes(data.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    return dataclasses.replace(found, expected=_SOUND | dict.fromkeys(keys, 50))


MAKERS: tuple[Callable[[pathlib.Path, random.Random], Input], ...] = (
    *(make_tar, make_tar, make_tar, make_kind_of_file, make_picture, make_picture),
    *(make_json, make_json, make_caption, make_row, make_index),
)


def shards(folder: pathlib.Path, mutated_shard: bytes | None, expected: dict[str, int]) -> Input:
    """Writes the sound shard, and beside it the mutated one."""
    sound = [member for key, grey in _SOUND.items() for member in sample(key, grey)]
    (folder / "z.tar").write_bytes(tar(sound))
    if mutated_shard is not None:
        (folder / "0.tar").write_bytes(mutated_shard)
    config = DataConfig(
        source="shards", path=str(folder), resolution=SIDE, cache_dir=str(folder / "cache")
    )
    return Input(config, expected | _SOUND)


def _folder(folder: pathlib.Path, rows: list[bytes]) -> Input:
    for key, grey in _SOUND.items():
        (folder / f"{key}.png").write_bytes(picture(grey))
        row = {"file_name": f"{key}.png", "text": f"caption {key}", "split": "train"}
        rows = [*rows, _json(row)]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(rows))
    config = DataConfig(source="folder", path=str(folder), resolution=SIDE)
    return Input(config, _SOUND)


def make_input(folder: pathlib.Path, seed: int, number: int) -> tuple[str, Input]:
    """Returns the name and content of the input with this number."""
    rng = random.Random(f"{seed} {number}")
    maker = MAKERS[number % len(MAKERS)]
    return maker.__name__.removeprefix("make_"), maker(folder, rng)

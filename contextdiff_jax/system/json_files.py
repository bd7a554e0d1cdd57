"""JSON files that strangers may have made: read whole and within bounds, or refused by name."""

import codecs
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from contextdiff_jax.system.buckets import in_bucket

_MOST_BYTES = 64 * 2**20
_MOST_KEY_CHARACTERS = 1000

Pairs = Callable[[Sequence[tuple[str, Any]]], dict[str, Any]]


def read_object(path: epath.PathLike, *, finite: bool = True) -> dict[str, Any]:
    """Returns the object in a JSON file.

    finite: whether NaN and infinite numbers, which json.dumps writes, are refused.

    Raises FileNotFoundError where there is no such file, and ValueError, naming it, where it is no
    regular file, larger than 64 MiB, no JSON in UTF-8, nested too deeply for Python, no object, or
    where a key of it is over-long or cannot be printed.
    """
    numbers = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    return _object(read_regular(path, _MOST_BYTES), repr(os.fspath(path)), _checked, **numbers)


def read_object_lines(path: epath.PathLike, most: int) -> list[dict[str, Any]]:
    r"""Returns the objects of a JSON-lines file, one a line (ended by \n or \r\n), at most `most`.

    A byte order mark is dropped. Raises as `read_object` does of each line, and where a line is
    blank or names a key twice, of which the first would be lost.
    """
    lines = read_regular(path, _MOST_BYTES).removeprefix(codecs.BOM_UTF8).split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    if len(lines) > most:
        raise ValueError(f"{os.fspath(path)!r} has {len(lines):,} lines: must be at most {most:,}")
    found = []
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {os.fspath(path)!r}"
        if not line.strip():
            raise ValueError(f"{where} is blank: must hold a JSON object")
        found.append(_object(line, where, _unique, parse_float=_finite, parse_constant=_finite))
    return found


def _object(text: bytes, where: str, pairs: Pairs, **numbers: Any) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=pairs, **numbers)
    except RecursionError as error:
        raise ValueError(f"{where} is not JSON that can be read: too deep") from error
    except ValueError as error:  # of UnicodeDecodeError too, and of numbers of many digits
        raise ValueError(f"{where} is not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds a {type(content).__name__}: must hold a JSON object")
    return content


def read_regular(path: epath.PathLike, most: int) -> bytes:
    """Returns the bytes of a regular file of at most `most` bytes; no other is opened.

    Links to one are followed: caches of published weights consist of them. Raises as `read_object`.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{os.fspath(path)!r} does not exist")
    if not in_bucket(path) and not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)!r} is no regular file")
    with path.open("rb") as file:
        # `read` makes room for all that it is asked for before it reads.
        size = most if in_bucket(path) else os.fstat(file.fileno()).st_size
        content = file.read(min(size, most) + 1)
    if len(content) > most:
        raise ValueError(f"{os.fspath(path)!r} has more than {most:,} bytes")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds the number {text[:40]}, must be finite")
    return number


def _checked(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # Keys stand in messages as they are: no escape code reaches a terminal.
    for key, _ in pairs:
        if len(key) > _MOST_KEY_CHARACTERS or not key.isprintable():
            raise ValueError(f"the key {key[:60]!r} is over-long or cannot be printed")
    return dict(pairs)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = _checked(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"it names {twice!r} twice")
    return found

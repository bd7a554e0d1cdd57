"""JSON files that strangers may have made: read whole and within bounds, or refused by name."""

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from contextdiff_jax.system.buckets import in_bucket

_MOST_BYTES = 64 * 2**20
_MOST_KEY_CHARACTERS = 1000


def read_object(path: epath.PathLike, *, finite: bool = True) -> dict[str, Any]:
    """Returns the object in a JSON file.

    finite: whether NaN and infinite numbers, which json.dumps writes, are refused.

    Raises FileNotFoundError where there is no such file, and ValueError, naming it, where it is no
    regular file, larger than 64 MiB, no JSON in UTF-8, nested too deeply for Python, no object, or
    where a key of it is over-long or cannot be printed.
    """
    text = read_regular(path, _MOST_BYTES)
    numbers = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        content = json.loads(text, object_pairs_hook=_checked, **numbers)
    except RecursionError as error:
        raise ValueError(f"{os.fspath(path)!r} is not JSON that can be read: too deep") from error
    except ValueError as error:  # of UnicodeDecodeError too, and of numbers of many digits
        raise ValueError(f"{os.fspath(path)!r} is not JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"{os.fspath(path)!r} holds a {kind}: must hold a JSON object")
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
        content = file.read(most + 1)
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

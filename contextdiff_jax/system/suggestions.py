"""The nearest right word, for the sentence that refuses a wrong one."""

import difflib
import itertools
import os
import pathlib
from collections.abc import Iterable

from etils import epath

_MOST_NAMES = 2000  # of a folder; comparing with a million files takes longer than reading --help


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """Returns "; did you mean X?", or "" where nothing known is near; `before` precedes X."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {before}{found[0]}?" if found else ""


def nearest_path(path: epath.PathLike) -> str:
    """Returns "; did you mean PATH?" of a file or folder that is there, or "".

    Every part of the path that is missing is replaced by the name nearest to it. Buckets are not
    looked through.
    """
    if "://" in os.fspath(path):
        return ""
    wanted = pathlib.Path(path)
    found = pathlib.Path(wanted.anchor)
    for part in wanted.relative_to(wanted.anchor).parts:
        if not os.path.lexists(found / part):
            matches = difflib.get_close_matches(part, _names(found), 1)
            if not matches:
                return ""
            part = matches[0]
        found /= part
    return f"; did you mean {found}?"


def _names(folder: pathlib.Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, _MOST_NAMES)]
    except OSError:  # no folder, or no right to read it
        return []

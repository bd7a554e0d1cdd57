"""Names, captions and messages from files of strangers, fit for terminals, logs and reports.

A terminal obeys escape codes in what it shows: they retitle it, hide lines, forge others. Text that
changes direction, or has no width, makes one name look like another.
"""

import json
import re
from typing import Any

_CUT = "..."
_NO_CONTROLS = re.compile(r"[^\n\t]+")


def printable(text: object, most: int = 200) -> str:
    r"""Returns a name or caption on one line: what str.isprintable denies as escapes, \x1b.

    Cut to `most` characters, ending in "...". Doing it twice changes nothing.
    """
    text = str(text)
    if len(text) > most:  # escapes only add to it
        text = text[:most] + _CUT
    shown = _escaped(text)
    return shown if len(shown) <= most else shown[: most - len(_CUT)] + _CUT


def printable_lines(text: object) -> str:
    """Returns a message with what is not printable as escapes, except its line ends and tabs."""
    return _NO_CONTROLS.sub(lambda part: _escaped(part[0]), str(text))


def printable_json(value: Any, indent: int | None) -> str:
    """Returns what json.loads reads back exactly, other scripts than ours left readable.

    indent: None writes one line.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )

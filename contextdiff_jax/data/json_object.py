"""JSON of strangers: an object, or not."""

import json
import re
from typing import Any

_DEEPEST = 100  # arrays and objects in each other; Python's own limit depends on who calls
# A string without end reaches to the end of the text, so that nothing is gone over twice.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def parse_object(data: bytes) -> dict[str, Any] | None:
    """Returns the JSON object, or None: it is no JSON, another value, or nested too deeply.

    Numbers may be infinite or NaN: Python reads those names, and 1e999.
    """
    if _depth_is_too_great(data):
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _depth_is_too_great(data: bytes) -> bool:
    if data.count(b"[") + data.count(b"{") <= _DEEPEST:
        return False
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(data):
        depth += _STEP.get(found[0], 0)
        if depth > _DEEPEST:
            return True
    return False

"""Single values of configs and of JSON files that strangers made: of the right type, and finite."""

import math
from typing import Any

_MOST_SHOWN = 200  # characters


def read_scalar(expected: type, value: Any, where: str) -> Any:
    """Returns `value` as int, float, bool or str; `where` is its key, for the message.

    Raises ValueError where it is of another type, an int beyond 64 bits, or NaN or infinite. An int
    may stand for a float.
    """
    # bool is an int in Python: only an exact match keeps `steps=True` out.
    if expected is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if type(value) is not expected:
        kind = type(value).__name__
        raise ValueError(f"{where} = {shown(value)}: must be {expected.__name__}, is {kind}")
    if expected is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{where} = {shown(value)}: must fit into 64 bits")
    if expected is float and not math.isfinite(value):
        raise ValueError(f"{where} = {value}: must be finite")
    return value


def shown(value: Any) -> str:
    """Returns a value as a message names it: its repr, cut off where that is long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."

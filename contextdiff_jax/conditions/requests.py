"""Requests to sample: which conditions one must name, and what their values may be.

A request is a mapping from condition to value, such as {"text": "a red circle"}. It names every
condition of every stage, but for those that are made of the picture itself. None (null in JSON)
stands for no condition. Whether a request is allowed can be known before anything is loaded: of a
condition that cannot be made of the config alone, the type answers.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.system.scalars import shown
from contextdiff_jax.system.suggestions import nearest

Request = Mapping[str, Any]
Asked = Iterable[Condition | type[Condition]]
"""The conditions of a cascade's stages, or their types."""


def names(conditions: Asked) -> list[str]:
    """Returns the names of the conditions whose values requests give, each once."""
    return list(dict.fromkeys(each.name for each in conditions if not each.of_picture))


def check_requests(requests: Sequence[Any], conditions: Asked, where: str = "request") -> None:
    """Raises ValueError for the first request that is not allowed, as "`where` NUMBER ...".

    Numbers are from 1. The sentence names what the request lacks, or has too much or wrong.
    """
    asked = [each for each in conditions if not each.of_picture]
    known = names(asked)
    for number, request in enumerate(requests, 1):
        fault = _fault(request, asked, known)
        if fault:
            raise ValueError(f"{where} {number} {fault}")


def _fault(request: Any, asked: Sequence[Any], known: Sequence[str]) -> str:
    """Returns what is wrong with a request, "" where nothing is."""
    must = f"must name {' and '.join(known) or 'nothing'}"
    if not isinstance(request, Mapping):
        return f"is {shown(request)}: must be a mapping from condition to value"
    for name in request:
        if name not in known:
            return f"names {name!r}: {must}{nearest(str(name), known)}"
    for name in known:
        if name not in request:
            return f"lacks {name!r}: {must}"
    for condition in asked:
        value = request[condition.name]
        try:
            if value is not None:
                condition.check(value)
        except ValueError as error:
            return f"has {condition.name} = {shown(value)}: {error}"
    values = (request[each.name] in (None, each.null) for each in asked)
    if not all(each.empty_request for each in asked) and all(values):
        return f"is for no condition at all: must have one of {', '.join(known)}"
    return ""


def of_captions(captions: Sequence[str], conditions: Asked) -> list[Request]:
    """Returns the requests that captions are: values of the one condition that captions give.

    Raises ValueError where there is none, or more than one.
    """
    conditions = list(conditions)
    captioned = {each.name for each in conditions if each.captioned and not each.of_picture}
    if len(captioned) != 1:
        raise ValueError(
            f"captions cannot be drawn: must be the values of one condition, "
            f"there are {' and '.join(sorted(captioned)) or 'none'} of "
            f"{' and '.join(names(conditions)) or 'no conditions'}"
        )
    [name] = captioned
    return [{name: caption} for caption in captions]


def values_of(requests: Sequence[Request], condition: Condition) -> list[Any]:
    """Returns the values that requests give for a condition, its null for None."""
    found = (request[condition.name] for request in requests)
    return [condition.null if value is None else value for value in found]


def null_request(conditions: Asked) -> Request:
    """Returns the request for no condition at all."""
    return dict.fromkeys(names(conditions))


def one_line(request: Request) -> str:
    """Returns a request for people to read: its value where it has one, which is text."""
    values = list(request.values())
    if len(values) == 1 and (values[0] is None or isinstance(values[0], str)):
        return values[0] or ""
    return json.dumps(request, ensure_ascii=False)

"""What may change of a config while a run is under way, said beside the field it is about.

    steps: int = dataclasses.field(metadata=FREE)

A field without such a word may not change once a run has a checkpoint.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class MayChange:
    """when(before, now): which changes are allowed. numeric: whether they change the numbers."""

    when: Callable[[Any, Any], bool]
    numeric: bool

    def metadata(self) -> dict[str, "MayChange"]:
        """Returns it as a field's metadata."""
        return {_KEY: self}


_KEY = "resumed"

FREE = MayChange(lambda before, now: True, numeric=False).metadata()
"""What is written, how fast, in how much memory, or how long the run goes on."""

ADVISED = MayChange(lambda before, now: True, numeric=True).metadata()
"""It changes the numbers; a message advises it, so the run goes on, and its history says so."""


def advised_if(when: Callable[[Any, Any], bool]) -> dict[str, MayChange]:
    """Returns the metadata of a field that may change so far as a message advises."""
    return MayChange(when, numeric=True).metadata()


def rule_of(section: Any, keys: list[str]) -> MayChange | None:
    """Returns what the field keys[0].keys[1]... of a dataclass, or a section it lies in, says.

    None where nothing is said, or there is no such field.
    """
    for key in keys:
        if isinstance(section, Mapping):
            section = section.get(key)
            continue
        fields = dataclasses.fields(section) if dataclasses.is_dataclass(section) else ()
        found = next((field for field in fields if field.name == key), None)
        if found is None:
            return None
        if _KEY in found.metadata:
            return found.metadata[_KEY]
        section = getattr(section, key)
    return None

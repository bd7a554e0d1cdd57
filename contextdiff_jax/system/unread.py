"""A key that another key leaves unread must be as by default: else it was set for nothing."""

from typing import Any


def check_default(section: Any, key: str, where: str, reader: str) -> None:
    """Raises ValueError naming `where`.`key` where this field of a dataclass is not its default.

    All fields of the section have defaults. reader: who reads the field, or who does not.
    """
    value, default = getattr(section, key), getattr(type(section)(), key)
    if value != default:
        raise ValueError(f"{where}.{key} = {value!r}: must be {default!r}, the default, {reader}")

"""Fields of our configs, from and to keys of config.json: one table for both directions."""

from collections.abc import Mapping
from typing import Any

from contextdiff_jax.system.scalars import read_scalar, shown

Fields = Mapping[str, tuple[str, Any]]
"""Key of config.json -> field of our config, default of the key. Files omit keys."""


def read_fields(table: Fields, section: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns {field: value} of the keys in `table`, each of its default's type.

    A default that is a tuple stands for a list of integers. Raises ValueError, naming the key.
    """
    return {
        field: _value(default, section.get(key, default), f"{where}: {key}")
        for key, (field, default) in table.items()
    }


def _value(default: Any, value: Any, where: str) -> Any:
    if not isinstance(default, tuple):
        return read_scalar(type(default), value, where)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} = {shown(value)}: must be a list of integers")
    return tuple(read_scalar(int, each, where) for each in value)


def written_keys(table: Fields, config: Any) -> dict[str, Any]:
    """Returns {key: value} of the fields in `table`."""
    return {key: getattr(config, field) for key, (field, _) in table.items()}

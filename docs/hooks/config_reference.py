"""The reference of the configuration: every key, made from the dataclasses that read it.

Nothing here knows a key. Sections are found by the types of fields, also within unions, lists and
mappings; what a key means stands in the docstring of its dataclass, as "key: meaning".
"""

import dataclasses
import inspect
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = "reference/config.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    sys.path.append(str(ROOT))  # mkdocs is a program of its own: it does not look in its folder
    from contextdiff_jax.config import Config  # takes seconds
    from contextdiff_jax.generation.editing_config import EditingConfig

    files.append(File.generated(config, PAGE, content=reference(Config, EditingConfig)))
    return files


def reference(*roots: type) -> str:
    """Returns the page of some dataclasses and of all that their fields lead to."""
    head = (
        "# Configuration\n\nMade from the code. Every key is a flag: a key of the first table is "
        "`--config.KEY`, one of a run `--config.runs.NAME.KEY`. A key whose default is `required` "
        "has none; presets in `configs/` set it. EditingConfig and what follows it are of `edit`."
    )
    found = dict.fromkeys(section for root in roots for section in sections(root))
    return "\n\n".join([head, *map(_section, found)]) + "\n"


def sections(root: type) -> list[type]:
    """Returns the dataclass and those below it, in the order in which they are met, each once."""
    found, waiting = [], [root]
    while waiting:
        section = waiting.pop(0)
        if section not in found:
            found.append(section)
            hints = typing.get_type_hints(section)
            waiting += [
                each
                for field in dataclasses.fields(section)
                for each in _dataclasses(hints[field.name])
            ]
    return found


def _dataclasses(kind: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(kind):
        yield kind
    for part in typing.get_args(kind):
        yield from _dataclasses(part)


def _section(section: type) -> str:
    names = [field.name for field in dataclasses.fields(section)]
    prose, meanings = read_docstring(inspect.getdoc(section) or "", names)
    hints = typing.get_type_hints(section)
    rows = [
        f"| `{field.name}` | {_kind(hints[field.name])} | {_default(field)} | "
        f"{_cell(meanings.get(field.name, ''))} |"
        for field in dataclasses.fields(section)
    ]
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n\n".join([f"## {section.__name__}", *prose, "\n".join(table)])


def read_docstring(text: str, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the paragraphs of a docstring that are prose, and {key: meaning}.

    An entry is "key: meaning" or "key, key: meaning" at the start of a sentence; it ends where the
    next one or the paragraph does.
    """
    either = "|".join(map(re.escape, names)) or r"(?!)"
    entry = re.compile(rf"(?:^|(?<=[.;] ))((?:{either})(?:, (?:{either}))*): ")
    prose, meanings = [], {}
    for paragraph in text.split("\n\n"):
        before, *parts = entry.split(" ".join(paragraph.split()))
        if before.strip():
            prose.append(before.strip())
        for keys, meaning in zip(parts[::2], parts[1::2], strict=True):
            meanings |= dict.fromkeys(keys.split(", "), meaning.strip())
    return prose, meanings


def _kind(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if origin is Literal:
        return " or ".join(f"`{part!r}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_kind, parts))
    if origin in (tuple, list):
        return f"several {_kind(parts[0])}"
    if origin is dict:
        return f"by name, {_kind(parts[1])}"
    if kind is type(None):
        return "`None`"
    return f"`{getattr(kind, '__name__', kind)}`"


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(value):
        changed = [
            f"{inner.name}={getattr(value, inner.name)!r}"
            for inner in dataclasses.fields(value)
            if getattr(value, inner.name) != inner.default
        ]
        return f"`{', '.join(changed)}`" if changed else "its own"
    return f"`{value!r}`".replace("|", r"\|")


def _cell(text: str) -> str:
    """Returns text for a cell of a table, where | ends it and * or _ would be markup."""
    return re.sub(r"([|*_<])", r"\\\1", text)

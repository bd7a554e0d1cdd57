"""What a measurement found, in the form that is stored, tabulated and reported."""

import csv
import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.printable import printable_json
from contextdiff_jax.system.scalars import shown

_FORMAT = 1
RESULTS = "results.json"

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

Cell = str | float | int | bool | None


@dataclasses.dataclass(frozen=True)
class Table:
    """columns: their names, the first names the row. rows: one tuple of cells each.

    name: of its CSV file. note: what a reader must know of it.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot. file: relative to the output folder. caption: what it shows."""

    file: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Pictures in a grid. items: (file relative to the output folder, caption), row by row.

    columns: of the grid; 0: as many as there is room for.
    """

    title: str
    items: tuple[tuple[str, str], ...]
    columns: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """One measurement.

    title and summary: for people. values: the figures. protocol: what they depend on, every fact
    of it. warnings: what forbids a comparison or weakens it.
    """

    title: str
    summary: str
    values: dict[str, Any]
    protocol: dict[str, Any]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """Reads back what dataclasses.asdict made.

        Raises ValueError, KeyError or TypeError for what it did not make, and for names of files
        that would lie outside the output folder.
        """
        for name in ("tables", "figures", "galleries", "warnings"):
            if not isinstance(content[name], (list, tuple)):
                raise TypeError(f"{name} = {shown(content[name])} is no list")
        parts = {
            "tables": tuple(
                Table(**table | {"columns": tuple(table["columns"]), "rows": _rows(table["rows"])})
                for table in content["tables"]
            ),
            "figures": tuple(Figure(**figure) for figure in content["figures"]),
            "galleries": tuple(
                Gallery(**gallery | {"items": _rows(gallery["items"])})
                for gallery in content["galleries"]
            ),
            "warnings": tuple(content["warnings"]),
        }
        result = cls(**dict(content) | parts)
        _check(result)
        return result


def _check(result: Result) -> None:
    """Raises TypeError or ValueError for what no measurement writes."""
    for text in (
        *(result.title, result.summary, *result.warnings),
        *(text for table in result.tables for text in (table.name, table.note, *table.columns)),
        *(text for figure in result.figures for text in (figure.file, figure.caption)),
        *(
            text
            for part in result.galleries
            for text in (part.title, *itertools.chain(*part.items))
        ),
    ):
        if not isinstance(text, str):
            raise TypeError(f"{shown(text)} is no text")
    for name in ("values", "protocol"):
        if not isinstance(getattr(result, name), dict):
            raise TypeError(f"{name} = {shown(getattr(result, name))} is no object")
    for table in result.tables:
        _check_file(f"{table.name}.csv", plain=True)
        if any(len(row) != len(table.columns) for row in table.rows):
            raise ValueError(f"a row of table {table.name} has another length than its columns")
    for figure in result.figures:
        _check_file(figure.file)
    for gallery in result.galleries:
        for item in gallery.items:
            if len(item) != 2:
                raise ValueError(f"{shown(item)} is no file with its caption")
            _check_file(item[0])


def _check_file(name: str, plain: bool = False) -> None:
    """Raises ValueError unless a file lies in the output folder; plain: not in one inside it."""
    path = pathlib.PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and name.isprintable()
    if not inside or (plain and not _PLAIN.fullmatch(name)):
        raise ValueError(f"{shown(name)} is no name of a file in this folder")


def _rows(rows: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in rows)


def read_results(folder: epath.PathLike) -> dict[str, Result]:
    """Returns the results of an output folder by the measure's name; none where there are none.

    Raises ValueError for a file of another format, or one that is damaged.
    """
    path = epath.Path(folder) / RESULTS
    if not path.exists():
        return {}
    content = read_object(path, finite=False)
    if content.get("format") != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} has format {content.get('format')!r}; this version reads "
            f"{_FORMAT}: use another --output"
        )
    try:
        for name in content["results"]:
            _check_file(f"{name}.csv", plain=True)
        return {name: Result.from_json(result) for name, result in content["results"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} holds no results that this version wrote: {error!r}; use another "
            "--output"
        ) from error


def write_results(
    folder: epath.PathLike, results: Mapping[str, Result], versions: Mapping[str, str]
) -> None:
    """Writes results.json and one CSV file per table, MEASURE.csv or MEASURE_TABLE.csv."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": _FORMAT,
        "versions": dict(versions),
        "results": {name: dataclasses.asdict(result) for name, result in results.items()},
    }
    with written_whole(folder / RESULTS) as file:
        file.write_text(printable_json(content, indent=1))
    for name, result in results.items():
        for table in result.tables:
            stem = name if table.name == name else f"{name}_{table.name}"
            with written_whole(folder / f"{stem}.csv") as path, path.open("w") as file:
                writer = csv.writer(file)
                writer.writerows([table.columns, *table.rows])

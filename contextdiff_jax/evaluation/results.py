"""What a measurement found, in the form that is stored, tabulated and reported."""

import csv
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from contextdiff_jax.atomic_write import written_whole
from contextdiff_jax.printable import printable_json

_FORMAT = 1
RESULTS = "results.json"

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
        """Reads back what dataclasses.asdict made."""
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
        return cls(**dict(content) | parts)


def _rows(rows: list[list[Any]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(tuple(row) for row in rows)


def read_results(folder: epath.PathLike) -> dict[str, Result]:
    """Returns the results of an output folder by the measure's name; none where there are none.

    Raises ValueError for a file of another format.
    """
    path = epath.Path(folder) / RESULTS
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content.get("format") != _FORMAT:
        raise ValueError(
            f"{os.fspath(path)!r} has format {content.get('format')!r}; this version reads "
            f"{_FORMAT}: use another --output"
        )
    return {name: Result.from_json(result) for name, result in content["results"].items()}


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

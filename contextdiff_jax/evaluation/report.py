"""One HTML page of all results, complete in itself: pictures inlined, nothing fetched."""

import base64
import html
import math
import pathlib
import string
from collections.abc import Mapping
from typing import Any

from etils import epath

from contextdiff_jax.data.decode import open_image
from contextdiff_jax.evaluation.results import Cell, Figure, Gallery, Result, Table
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.printable import printable_lines

REPORT = "report.html"

_TEMPLATE = pathlib.Path(__file__).with_name("report.html")
_PIXELATED_BELOW = 128  # pixels of a side; smaller pictures are enlarged without blurring
_BROAD_FROM = 1.5  # width over height; such pictures get a row of their own
_HEADLINES = 3
_FOLDED_FROM = 24  # rows of a table


def write_report(
    folder: epath.PathLike,
    title: str,
    subtitle: str,
    results: Mapping[str, Result],
    versions: Mapping[str, str],
) -> epath.Path:
    """Writes report.html into the output folder that holds the results' files; returns its path."""
    folder = epath.Path(folder)
    sections = [_section(folder, name, result) for name, result in results.items()]
    links = [f'<a href="#{_escape(n)}">{_escape(r.title)}</a>' for n, r in results.items()]
    page = string.Template(_TEMPLATE.read_text()).substitute(
        title=_escape(title),
        subtitle=_escape(subtitle),
        contents="\n".join(links) if len(links) > 1 else "",
        sections="\n".join(sections),
        versions=_escape(", ".join(f"{name} {version}" for name, version in versions.items())),
    )
    path = folder / REPORT
    with written_whole(path) as file:
        file.write_text(page)
    return path


def _escape(text: str) -> str:
    """Returns text as HTML shows it; captions are strangers', and may hold control characters."""
    return html.escape(printable_lines(text))


def _section(folder: epath.Path, name: str, result: Result) -> str:
    parts = [
        f'<section id="{_escape(name)}">',
        f"<h2>{_escape(result.title)}</h2>",
        f"<p>{_escape(result.summary)}</p>",
        *(f'<p class="warning">{_escape(warning)}</p>' for warning in result.warnings),
        _headline(result.values),
        *(_table(table) for table in result.tables),
        *(_plot(folder, figure) for figure in result.figures),
        *(_gallery(folder, gallery) for gallery in result.galleries),
        _protocol(result.protocol),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _headline(values: Mapping[str, Any]) -> str:
    """The first plain numbers of a result, large; all of them are in its tables."""
    cells = [
        f"<div><b>{shown(value)}</b><span class='soft'>{_escape(_words(name))}</span></div>"
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ][:_HEADLINES]
    return f'<div class="headline">{"".join(cells)}</div>' if cells else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{_escape(column)}</th>" for column in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_escape(shown(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    note = f'<p class="soft">{_escape(table.note)}</p>' if table.note else ""
    whole = f'<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>'
    if len(table.rows) > _FOLDED_FROM:
        whole = f"<details><summary>{len(table.rows):,} rows</summary>{whole}</details>"
    return whole + note


def _plot(folder: epath.Path, figure: Figure) -> str:
    image, _ = _inlined(folder / figure.file, figure.caption)
    caption = f"<figcaption>{_escape(figure.caption)}</figcaption>"
    return f'<figure class="plot">{image}{caption}</figure>'


def _gallery(folder: epath.Path, gallery: Gallery) -> str:
    figures, sizes = [], []
    for file, caption in gallery.items:
        image, size = _inlined(folder / file, caption)
        sizes.append(size)
        text = _escape(caption) or "(no caption)"
        figures.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    if not figures:
        return ""
    kinds = ["gallery"]
    if max(width / height for width, height in sizes) >= _BROAD_FROM:
        kinds.append("broad")
    if max(map(max, sizes)) < _PIXELATED_BELOW:
        kinds.append("pixels")
    style = ""
    if gallery.columns:
        style = f' style="grid-template-columns: repeat({gallery.columns}, minmax(0, 1fr))"'
    grid = f'<div class="{" ".join(kinds)}"{style}>' + "\n".join(figures) + "</div>"
    return f"<h3>{_escape(gallery.title)}</h3>\n{grid}"


def _protocol(protocol: Mapping[str, Any]) -> str:
    entries = "\n".join(
        f"<dt>{_escape(_words(name))}</dt><dd>{_escape(shown(value))}</dd>"
        for name, value in _flat(protocol)
    )
    return f"<h3>Protocol</h3>\n<dl>{entries}</dl>" if entries else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    entries = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            entries += _flat(value, f"{prefix}{name}, ")
        else:
            entries.append((prefix + name, value))
    return entries


def _inlined(path: epath.Path, alt: str) -> tuple[str, tuple[int, int]]:
    """Returns an <img> with the PNG or (animated) WebP inside it, and its size (width, height)."""
    data = path.read_bytes()
    with open_image(data, ("PNG", "WEBP")) as image:
        size, kind = image.size, image.format.lower()
    source = base64.b64encode(data).decode()
    return f'<img alt="{_escape(alt)}" src="data:image/{kind};base64,{source}">', size


def shown(value: Cell | list | tuple) -> str:
    """Returns a value as a person reads it: four significant digits, thousands separated."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isfinite(value) and abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.4g}"
    return str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")

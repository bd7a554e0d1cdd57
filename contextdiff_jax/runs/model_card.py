"""README.md beside an export: what it is, what it was trained by and on, what it does not promise.

A card without the line that says so was not written here, or is no longer: it is not replaced.
"""

import csv
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from contextdiff_jax.config import Config
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.printable import printable
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.training.metrics import FILE as METRICS

NAME = "README.md"
_MARK = "<!-- Written by contextdiff_jax; without this line, later exports keep the card. -->"
_LICENCE = re.compile(r"^license:\s*([\w.+-]{1,60})\s*$", re.MULTILINE)
_SHOWN = ("loss", "error", "accuracy", "relation_rms", "signal_gain")
_MOST_BYTES = 2**20  # read of a card
_LIMITS = {
    "contextdiff": "Only this project's programs read the folder.",
    "diffusers": "The folder has no safety checker: what it draws is not filtered.",
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a card is about: config, the metadata of each stage's checkpoint, folder of the runs."""

    config: Config
    stages: Mapping[str, Mapping[str, Any]]
    workdir: epath.Path


def write_card(output: epath.Path, trained: Trained, kind: str) -> None:
    """Writes the card; kind: the format of the export, "contextdiff" or "diffusers"."""
    file = output / NAME
    if file.exists() and _MARK not in file.read_bytes().decode(errors="replace")[:2000]:
        logging.warning("%s is kept as it is: it was not written by this program", file)
        return
    with written_whole(file) as unfinished:
        unfinished.write_text(card(trained, kind))


def card(trained: Trained, kind: str) -> str:
    """Returns the card as Markdown, its head as Hugging Face reads it."""
    config = trained.config
    licence = base_licence(config)
    head = ["---", f"library_name: {'diffusers' if kind == 'diffusers' else 'contextdiff_jax'}"]
    head += [] if licence is None else [f"license: {licence}"]
    parts = [
        "\n".join([*head, "tags: [diffusion]", "---", _MARK]),
        f"# {printable(config.name)}",
        _table(("", "what"), _summary(trained)),
        "## Trained",
        *(_stage(trained, name) for name in trained.stages),
        "## Measures",
        _measures(trained),
        "## Limits",
        _LIMITS[kind] + " It draws what its data showed it, with the gaps and the slant of those "
        "data, and nothing here says how often a picture misses its prompt: measure it for your "
        "use (`python -m contextdiff_jax.evaluate`).",
        "## Licence",
        _licence(config, licence),
    ]
    return "\n\n".join(parts) + "\n"


def base_licence(config: Config) -> str | None:
    """Returns the licence that the card of config.model states; None where there is none."""
    file = epath.Path(config.model) / NAME
    if not config.model or not file.is_file() or file.stat().length > _MOST_BYTES:
        return None
    text = file.read_bytes().decode(errors="replace")
    if not text.startswith("---"):
        return None
    found = _LICENCE.search(text.split("\n---", 1)[0])
    return found and found[1]


def _summary(trained: Trained) -> list[tuple[str, str]]:
    config = trained.config
    first = next(iter(trained.stages.values()))
    known = first.get("versions", {})
    versions = ", ".join(f"{name} {number}" for name, number in known.items())
    return [
        ("stages", ", ".join(trained.stages)),
        ("context-aware adapter", "yes" if config.use_adapter else "no"),
        ("starts from", config.model or "nothing"),
        ("weights", "moving average (EMA)"),
        ("versions", versions),
    ]


def _stage(trained: Trained, name: str) -> str:
    run, metadata = trained.config.runs[name], trained.stages[name]
    data = run.data
    optimizer = run.optimizer
    rows = [
        ("task", run.task.kind),
        ("step", f"{metadata['step']} of {run.steps}, {run.batch_size} pictures each"),
        ("data", f"{data.source}: {data.path or 'rendered here'}"),
        ("samples", str(metadata.get("data", {}).get("samples", "not recorded"))),
        ("resolution", str(data.resolution)),
        ("trained weights", ", ".join(run.trainable) or "all"),
        ("started from", run.start_from.path or "random weights"),
        ("optimizer", f"{optimizer.name}, learning rate {optimizer.learning_rate:g}"),
    ]
    process, sampler = getattr(run.task, "diffusion", None), getattr(run.task, "sampler", None)
    if process is not None:
        rows += [
            ("process", f"{_path(process)}, {process.num_steps} steps, {process.prediction}"),
            ("sampler", f"{sampler.name}, {sampler.num_steps} steps"),
            ("guidance", f"{sampler.guidance_scale:g}"),
        ]
    rows += [(f"encoder {key}", identity) for key, identity in metadata.get("encoders", {}).items()]
    return f"### {name}\n\n" + _table(("", "what"), rows)


def _path(process: DiffusionConfig) -> str:
    """Returns the schedule of noise; a flow has none."""
    if process.kind == "vp":
        return process.schedule
    learned = "mean velocities" if process.mean_velocities else "velocities"
    return f"flow matching of {learned}, relation {process.flow.relation}"


def _measures(trained: Trained) -> str:
    """The last logged metrics of each stage: of training, which is no evidence of quality."""
    rows = []
    for name, metadata in trained.stages.items():
        if not metadata["step"]:
            continue  # not trained: what lies at its place in the folder is of another run
        last = _last_row(trained.workdir / name / METRICS)
        rows += [(f"{name}: {key}", value) for key, value in last.items()]
    note = "Of training, at the last logged step. A small loss is no evidence of good pictures."
    return f"{note}\n\n" + _table(("metric", "value"), rows) if rows else "None was logged."


def _last_row(file: epath.Path) -> dict[str, str]:
    if not file.exists():
        return {}
    rows = [row for row in csv.reader(file.read_text().splitlines()) if len(row) == 3]
    last = {name: value for step, name, value in rows if step == rows[-1][0]}
    return {name: f"{float(last[name]):.4g}" for name in _SHOWN if name in last}


def _licence(config: Config, licence: str | None) -> str:
    if licence is not None:
        return f"The model that it starts from is under `{licence}`, which these weights inherit."
    if config.model:
        return (
            f"The folder {config.model} that it starts from states no licence. The licence of the "
            "weights there holds for these too: look where they came from."
        )
    return "Not stated. It depends on the data, and on what the runs started from."


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return printable(str(text)).replace("|", "\\|")

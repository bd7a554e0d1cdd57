"""Convergence curves of training runs, from their metrics.csv."""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from contextdiff_jax.evaluation import plots
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.results import Figure, Result, Table
from contextdiff_jax.system.json_files import read_regular
from contextdiff_jax.system.scalars import shown

METRICS_FILE = "metrics.csv"
NOT_CURVES = ("images_per_second", "learning_rate")

_MOST_BYTES = 2**30
_MOST_STEPS = 2**63

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (n,) int64, rising, and values (n,) float64."""


def read_metrics(path: epath.PathLike) -> dict[str, Curve]:
    """Returns the curves in a run's metrics.csv, given by the file or its folder.

    Raises ValueError where there is no such file, a row of it is no metric, or it is empty.
    """
    file = epath.Path(path)
    if file.is_dir():
        file = file / METRICS_FILE
    if not file.exists():
        raise ValueError(f"run {str(path)!r}: no {METRICS_FILE} there; give the folder of one run")
    points: dict[str, dict[int, float]] = {}
    rows = _rows(file)
    for number, row in enumerate(rows[1:], 2):
        try:
            step, name, value = row
            if not 0 <= int(step) < _MOST_STEPS:
                raise ValueError(f"step {step[:30]}")
            points.setdefault(name, {})[int(step)] = float(value)
        except ValueError as error:
            if number == len(rows):
                continue  # a run that is being written, or was killed, ends in half a row
            raise ValueError(
                f"{file}, line {number}: must be step, name, value: {shown(row)}"
            ) from error
    if not points:
        raise ValueError(f"{file} holds no metrics yet")
    return {
        name: (np.array(sorted(curve)), np.array([curve[step] for step in sorted(curve)]))
        for name, curve in points.items()
    }


def _rows(file: epath.Path) -> list[list[str]]:
    try:
        text = read_regular(file, _MOST_BYTES).decode()
        return list(csv.reader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{os.fspath(file)!r} holds no metrics: {error}") from error


def common_metrics(runs: Mapping[str, Mapping[str, Curve]], wanted: Sequence[str]) -> list[str]:
    """Returns the metrics to plot: the wanted ones, by default all that every run has.

    Raises ValueError for a wanted one that a run lacks, or if there are none.
    """
    for label, curves in runs.items():
        missing = [name for name in wanted if name not in curves]
        if missing:
            known = ", ".join(sorted(curves))
            raise ValueError(f"metric {missing[0]!r}: run {label!r} has none, it has {known}")
    first = next(iter(runs.values()))
    shared = [name for name in first if all(name in curves for curves in runs.values())]
    names = list(wanted) or [name for name in shared if name not in NOT_CURVES]
    if not names:
        raise ValueError(f"the runs {', '.join(runs)} have no metric in common")
    return names


def measure(
    runs: Mapping[str, Mapping[str, Curve]], wanted: Sequence[str], folder: epath.PathLike
) -> Result:
    """Plots the runs' metrics over steps into FOLDER/curves.png and tabulates their last values."""
    names = common_metrics(runs, wanted)
    axes = plots.panels(len(names))
    for panel, name in zip(axes, names, strict=True):
        _draw(panel, {label: curves[name] for label, curves in runs.items()})
        plots.label(panel, name, "step")
    if len(runs) > 1:
        axes[0].legend(fontsize=8, frameon=False)
    plots.save(axes[0], epath.Path(folder) / "curves.png")
    last = {
        name: {label: float(curves[name][1][-1]) for label, curves in runs.items()}
        for name in names
    }
    steps = {label: int(max(curves[n][0][-1] for n in names)) for label, curves in runs.items()}
    table = Table(
        "curves",
        ("metric", *runs),
        (
            *((name, *(last[name][label] for label in runs)) for name in names),
            ("last step", *steps.values()),
        ),
        "The last value logged of each metric, a mean over the run's log_every steps.",
    )
    return Result(
        title="Convergence",
        summary="Training metrics over steps, as the runs logged them. Losses of runs with and "
        "without the adapter are not comparable: it changes what is predicted.",
        values={"last": last},
        protocol={"last_step": steps, "metrics": names},
        tables=(table,),
        figures=(Figure("curves.png", f"Metrics by training step: {', '.join(runs)}."),),
    )


def _draw(panel, curves: Mapping[str, Curve]) -> None:
    for index, (label, (steps, values)) in enumerate(curves.items()):
        colour = plots.COLOURS[index % len(plots.COLOURS)]
        marker = "o" if len(steps) < 15 else ""
        panel.plot(steps, values, color=colour, label=label, linewidth=1.4, marker=marker, ms=3)
    plots.log_where_wide(panel, np.concatenate([values for _, values in curves.values()]))


def read_runs(evaluation: Evaluation) -> dict[str, dict[str, Curve]]:
    """Returns the curves of the runs that were asked for, by their labels."""
    return {label: read_metrics(path) for label, path in evaluation.settings.runs}


def plan_curves(evaluation: Evaluation) -> Callable[[], Result]:
    """Metrics of training runs over their steps."""
    runs = read_runs(evaluation)
    if not runs:
        raise ValueError("--what=curves: give --run=LABEL=FOLDER of each run to plot")
    common_metrics(runs, evaluation.settings.metrics)
    return lambda: measure(runs, evaluation.settings.metrics, evaluation.output)

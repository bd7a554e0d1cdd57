"""The tables and the plot of `paired_runs`: mean and deviation over seeds, differences of pairs."""

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.container import Container

from contextdiff_jax.evaluation import plots

# {variant: {seed: {figure's name: value}}}
Results = Mapping[str, Mapping[str, Mapping[str, float]]]
# {(variant, sampler): {number of calls: {seed: value}}} of one figure
ByCalls = dict[tuple[str, str], dict[str, dict[str, float]]]

# What the others are paired with, where measured.
REFERENCES = ("none", "vp_none", "flow_none", "flow_x0_none")
_AT = " at "  # between a figure's name and how many calls of which sampler
_OF = " calls of "
_DISTANCES = ("FID", "FID-768", "Frechet distance on CLIP features")  # on a logarithmic axis
_PLOTTED = (*_DISTANCES, "colour and shape", "precision", "recall")
_STYLES = ("-", "--", ":", "-.")


def suffix_of(calls: str, sampler: str) -> str:
    """Returns what follows the name of a figure that was drawn with so many calls."""
    return f"{_AT}{calls}{_OF}{sampler}"


def summary(results: Results) -> str:
    """Returns Markdown: every figure but those by calls, then the differences of pairs.

    Both as mean +- standard deviation over the seeds.
    """
    text = _table(results, "")
    for reference in REFERENCES:
        if differences := _minus(results, reference):
            text += f"\nMinus `{reference}` of the same seed:\n\n" + _table(differences, "+")
    return text


def _minus(results: Results, reference: str) -> Results:
    """Returns {variant: {seed: differences}} of all others that have a seed in common with it."""
    pairs = {
        variant: {
            seed: _difference(figures, results[reference][seed])
            for seed, figures in seeds.items()
            if seed in results[reference]
        }
        for variant, seeds in results.items()
        if variant != reference and reference in results
    }
    return {variant: seeds for variant, seeds in pairs.items() if seeds}


def _difference(figures: Mapping[str, float], reference: Mapping[str, float]) -> dict[str, float]:
    return {name: figures[name] - reference[name] for name in figures if name in reference}


def _table(results: Results, sign: str) -> str:
    every = [figures for seeds in results.values() for figures in seeds.values()]
    names = dict.fromkeys(name for figures in every for name in figures)
    names = [name for name in names if _AT not in name]
    rows = []
    for variant, seeds in results.items():
        cells = [_spread([f[name] for f in seeds.values() if name in f], sign) for name in names]
        rows.append([variant, str(len(seeds)), *cells])
    return _markdown(["variant", "seeds", *names], rows)


def by_calls(results: Results) -> str:
    """Returns Markdown: for each figure, a row a variant and sampler, a column a number of calls.

    Each cell is mean +- standard deviation over the seeds, and so are the differences of pairs
    that follow; "" where nothing was drawn by calls.
    """
    text = ""
    minus = {reference: _by_figure(_minus(results, reference)) for reference in REFERENCES}
    for figure, rows in _by_figure(results).items():
        text += f"## {figure}, by network calls\n\n{_calls_table(rows, '')}\n"
        for reference, differences in minus.items():
            if figure in differences:
                text += f"Minus `{reference}` of the same seed and sampler:\n\n"
                text += f"{_calls_table(differences[figure], '+')}\n"
    return text


def _by_figure(results: Results) -> dict[str, ByCalls]:
    """Returns {figure: ...} of what was drawn by numbers of calls."""
    found: dict[str, ByCalls] = {}
    for variant, seeds in results.items():
        for seed, figures in seeds.items():
            for name, value in figures.items():
                figure, at, drawing = name.partition(_AT)
                if at:
                    calls, _, sampler = drawing.partition(_OF)
                    row = found.setdefault(figure, {}).setdefault((variant, sampler), {})
                    row.setdefault(calls, {})[seed] = value
    return found


def _numbers(rows: ByCalls) -> list[str]:
    return sorted({calls for row in rows.values() for calls in row}, key=int)


def _calls_table(rows: ByCalls, sign: str) -> str:
    numbers = _numbers(rows)
    cells = [
        [*who, *(_spread(list(row.get(calls, {}).values()), sign) for calls in numbers)]
        for who, row in rows.items()
    ]
    return _markdown(["variant", "sampler", *numbers], cells)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _spread(values: Sequence[float], sign: str) -> str:
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4g}{deviation}"


def plot(results: Results, path: epath.Path) -> bool:
    """Draws `panels_of` into a PNG. Returns False where nothing was drawn by calls."""
    axes = panels_of(results)
    if not axes:
        return False
    handles: dict[str, Container] = {}
    for panel in axes:
        lines, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, lines, strict=True))
    axes[0].get_figure().legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8
    )
    plots.save(axes[0], path)
    return True


def panels_of(results: Results) -> list[Axes]:
    """Returns panels of quality against network calls: a row a figure, a column a sampler.

    A line is a variant; its bars are standard deviations over the seeds.
    """
    found = _by_figure(results)
    figures = {name: found[name] for name in _PLOTTED if name in found}
    if not figures:
        return []
    samplers = list(dict.fromkeys(sampler for rows in figures.values() for _, sampler in rows))
    axes = plots.panels(len(figures) * len(samplers), columns=len(samplers), size=(4.6, 3.0))
    places = [(name, sampler) for name in figures for sampler in samplers]
    for panel, (name, sampler) in zip(axes, places, strict=True):
        means = _lines(panel, figures[name], sampler, list(results))
        spread = 1.0 if name in _DISTANCES else plots.LOG_FROM
        plots.log_where_wide(panel, np.array(means), spread)
        plots.label(panel, f"{name}, {sampler}", "network calls")
    return axes


def _lines(axes: Axes, rows: ByCalls, sampler: str, variants: Sequence[str]) -> list[float]:
    """Draws a line for each variant that this sampler drew by; returns the means on them."""
    numbers = _numbers(rows)
    axes.set_xscale("log")
    axes.set_xticks([int(calls) for calls in numbers], numbers)
    axes.set_xticks([], minor=True)
    means = []
    for place, variant in enumerate(variants):
        row = rows.get((variant, sampler), {})
        calls = [each for each in numbers if each in row]
        if not calls:
            continue
        values = [list(row[each].values()) for each in calls]
        means += [statistics.mean(each) for each in values]
        axes.errorbar(
            [int(each) for each in calls],
            means[-len(calls) :],
            [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values],
            label=variant,
            color=plots.COLOURS[place % len(plots.COLOURS)],
            linestyle=_STYLES[place // len(plots.COLOURS) % len(_STYLES)],
            linewidth=1.2,
            capsize=2,
            marker="o",
            markersize=3,
        )
    return means

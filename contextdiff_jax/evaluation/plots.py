"""The look of all plots, and writing them."""

import numpy as np
from etils import epath
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contextdiff_jax.system.atomic_write import written_whole

# Okabe & Ito 2008: told apart by colour-blind people, too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LOG_FROM = 20.0
_MANY_DECADES = 1000.0  # as the span of an axis
_DOTS_PER_INCH = 130
_SOFT = "#5d6770"


def panels(count: int, columns: int = 3, size: tuple[float, float] = (3.9, 2.7)) -> list[Axes]:
    """Returns the axes of `count` panels of one new figure, size (width, height) inches each."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure((size[0] * columns, size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.remove()
    for each in axes[:count]:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(_SOFT)
        each.tick_params(which="both", colors=_SOFT, labelsize=8)
        each.grid(color="#e6e8ea", linewidth=0.7)
        each.set_axisbelow(True)
    return axes[:count]


def label(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Names a panel and its axes."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9, color=_SOFT)
    axes.set_ylabel(y, fontsize=9, color=_SOFT)


def log_where_wide(axes: Axes, values: np.ndarray, spread: float = LOG_FROM) -> None:
    """Makes the vertical axis logarithmic where positive values span at least `spread`.

    Over few decades 2 and 5 times the powers of ten have a number, too.
    """
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0 or values.max() / values.min() < spread:
        return
    axes.set_yscale("log")
    if values.max() / values.min() >= _MANY_DECADES:
        return
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    for write in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        write(ticker.StrMethodFormatter("{x:g}"))


def save(axes: Axes, path: epath.PathLike) -> None:
    """Writes the figure that `axes` belong to as a PNG, whole or not at all."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        axes.get_figure().savefig(unfinished, dpi=_DOTS_PER_INCH, format="png")

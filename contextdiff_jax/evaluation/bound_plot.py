"""The terms of the variational bound over time as a plot."""

import numpy as np
from etils import epath

from contextdiff_jax.evaluation import plots
from contextdiff_jax.evaluation.results import Figure, Table


def draw(terms: Table, folder: epath.PathLike) -> Figure:
    """Plots a table with the columns t, bits_per_dim and x0_mse into FOLDER/bits_per_dim.png."""
    columns = dict(zip(terms.columns, zip(*terms.rows, strict=True), strict=True))
    t = np.array(columns["t"])
    axes = plots.panels(2)
    for panel, name, title in (
        (axes[0], "bits_per_dim", "bits/dim of each term"),
        (axes[1], "x0_mse", "squared error of x0"),
    ):
        values = np.array(columns[name], np.float64)
        panel.plot(t, values, color=plots.COLOURS[0], linewidth=1.4)
        plots.label(panel, title, "t")
        panel.set_xscale("log")
        plots.log_where_wide(panel, values)
    plots.save(axes[0], epath.Path(folder) / "bits_per_dim.png")
    return Figure(
        "bits_per_dim.png", "What each time adds to the bound, and how well x0 is estimated there."
    )

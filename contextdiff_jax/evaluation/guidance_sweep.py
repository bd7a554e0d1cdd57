"""FID against CLIP score over guidance scales (as in Saharia et al. 2022, figure 4)."""

from collections.abc import Sequence

from etils import epath

from contextdiff_jax.evaluation import plots
from contextdiff_jax.evaluation.results import Figure


def draw(
    scales: Sequence[float],
    cosines: Sequence[float],
    distances: Sequence[float],
    distance_name: str,
    folder: epath.PathLike,
) -> Figure:
    """Plots one point per scale, joined in their order, into FOLDER/sweep.png."""
    (axes,) = plots.panels(1, size=(5.6, 4.0))
    axes.plot(cosines, distances, color=plots.COLOURS[0], marker="o", markersize=5, linewidth=1.4)
    for scale, x, y in zip(scales, cosines, distances, strict=True):
        axes.annotate(f"{scale:g}", (x, y), xytext=(6, 5), textcoords="offset points", fontsize=8)
    axes.margins(0.12)
    plots.label(axes, "", "CLIP score (mean cosine)", distance_name)
    plots.save(axes, epath.Path(folder) / "sweep.png")
    return Figure(
        "sweep.png", "Better is right and down; the numbers at the points are guidance scales."
    )

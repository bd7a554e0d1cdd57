"""Figures of paired runs for layouts and in-context generation, of what `evaluate` measured.

  python -m benchmarks.paired_runs --output=runs/layout --config=layout:scenes --what=boxes \
      --variants=none,bounded
  python -m benchmarks.paired_runs --output=runs/in_context --config=in_context:scenes \
      --what=in_context --variants=none,bounded
"""

from collections.abc import Mapping

from contextdiff_jax.evaluation.results import Result

PLACED = ("boxes", "in_context")
_BOXES = ("colour_and_shape", "placed", "colour", "shape", "pictures", "iou")
_ALONE = "context and query"  # where nothing else can say it


def placed_figures(results: Mapping[str, Result], base: str) -> dict[str, float]:
    """Returns the figures of "boxes" and "in_context", of those that are there, by name."""
    found: dict[str, float] = {}
    if "boxes" in results:
        values = results["boxes"].values[base]
        found |= {f"boxes: {name}": values["layouts"][name] for name in _BOXES}
        found["boxes: colour_and_shape, shuffled"] = values["shuffled"]["colour_and_shape"]
    if "in_context" in results:
        for title, values in results["in_context"].values.items():
            found |= {f"{title}: {name}": share for name, share in values["own"].items()}
        chance = results["in_context"].values[_ALONE]
        found["colour of another's context"] = chance["context of another"]["colour"]
        found["place of another's query"] = chance["query of another"]["place"]
    return found

"""The metrics of the steps since the last row, which a checkpoint carries on."""

from collections.abc import Mapping
from typing import Any

import jax

_NOT_A_METRIC = "failed_at"


class Window:
    """Collects what every step gives and returns its means.

    Sums go from step to step, so that a run that was stopped within a window and resumed writes
    the bits that an undisturbed one writes.

    carried: what `to_json` gave when the checkpoint was saved; None begins an empty window.
    """

    def __init__(self, carried: Mapping[str, Any] | None = None):
        self._before: Mapping[str, Any] = carried or {"steps": 0, "sums": {}}
        self._rows: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, jax.Array]) -> None:
        """Adds a step's metrics, scalars that are still being computed; waits for nothing."""
        self._rows.append(metrics)

    def rows(self) -> list[dict[str, float]]:
        """Returns the metrics of each step since the start or the last row; waits for them."""
        self._rows = jax.device_get(self._rows)
        return [{name: float(value) for name, value in row.items()} for row in self._rows]

    def means(self) -> dict[str, float]:
        """Returns the mean of each metric over the window, with what was carried; waits."""
        found = self.to_json()
        return {name: total / found["steps"] for name, total in found["sums"].items()}

    def to_json(self) -> dict[str, Any]:
        """Returns the number of steps in the window and the sum of each metric; waits."""
        rows, sums = self.rows(), dict(self._before["sums"])
        for row in rows:
            for name, value in row.items():
                if name != _NOT_A_METRIC:
                    sums[name] = sums.get(name, 0.0) + value
        return {"steps": self._before["steps"] + len(rows), "sums": sums}

"""A loss that is not finite: keep what is needed to look into it, then stop."""

import json
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.parallel import distributed
from contextdiff_jax.training.checkpoints import save_tree
from contextdiff_jax.training.state import TrainState


class NotFinite(RuntimeError):
    """The loss or gradient of a step was not finite; the message says where the evidence is."""


def save_and_describe(
    folder: epath.PathLike,
    step: int,
    position: int,
    state: TrainState,
    window: list[dict[str, Any]],
    metadata: dict[str, Any],
) -> NotFinite:
    """Writes the last sound state and the metrics around the failure, and returns the error.

    folder/state: an Orbax tree with params, ema and the optimiser as they were before the step.
    folder/report.json: step, the batch's first global example index, the metrics, the config.
    The batch itself is a pure function of (seed, index), so it need not be kept.
    """
    folder = epath.Path(folder)
    save_tree(folder / "state", {"params": state.params, "ema": state.ema})
    if distributed.is_main():
        _write_report(folder, step, position, window, metadata)
    return NotFinite(
        f"the loss or its gradient was not finite at step {step}; the last sound weights and the "
        f"metrics are in {folder}, the batch starts at example {position}: lower the learning "
        "rate, raise warmup_steps, or look at those examples"
    )


def _write_report(
    folder: epath.Path,
    step: int,
    position: int,
    window: list[dict[str, Any]],
    metadata: dict[str, Any],
) -> None:
    report = {
        "step": step,
        "first_example": position,
        "metrics": [{name: float(np.asarray(v)) for name, v in row.items()} for row in window],
        **metadata,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2, default=str))

"""A loss that is not finite: keep what is needed to look into it, then stop."""

import dataclasses
import json
from typing import Any

from etils import epath

from contextdiff_jax.parallel import distributed
from contextdiff_jax.training.checkpoints import save_tree
from contextdiff_jax.training.state import TrainState


class NotFinite(RuntimeError):
    """The loss or gradient of a step was not finite; the message says where the evidence is."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """What is known of a step that was not finite.

    step: its number, from 1, as in metrics.csv; the checkpoint before it would be step - 1.
    first_example: the global index of its batch's first example.
    metrics: of each step since the last row of metrics.csv, or the start.
    saved: the step of the newest checkpoint, None where there is none yet.
    """

    step: int
    first_example: int
    metrics: list[dict[str, float]]
    saved: int | None


def save_and_describe(
    folder: epath.PathLike, failure: Failure, state: TrainState, metadata: dict[str, Any]
) -> NotFinite:
    """Writes the last sound state and the metrics around the failure, and returns the error.

    folder/state: an Orbax tree with params and ema as they were before the step.
    folder/report.json: the step, the batch's first global example index, the metrics, the config.
    The batch itself is a pure function of (seed, index), so it need not be kept. What an earlier
    failure left there is replaced.
    """
    folder = epath.Path(folder)
    save_tree(folder / "state", {"params": state.params, "ema": state.ema})
    if distributed.is_main():
        _write_report(folder, failure, metadata)
    return NotFinite(
        f"the loss or its gradient was not finite at step {failure.step}; the last sound weights "
        f"and the metrics are in {folder}, the batch starts at example {failure.first_example}: "
        "look at those examples, or lower optimizer.learning_rate, raise optimizer.warmup_steps or "
        f"lower optimizer.clip_norm, and give the same command again: {_goes_on(failure.saved)}"
    )


def _goes_on(saved: int | None) -> str:
    if saved is None:
        return "it begins anew"
    return (
        f"it goes on from the checkpoint of step {saved}, or, where that had diverged already and "
        "its folder is moved away, from the one before"
    )


def _write_report(folder: epath.Path, failure: Failure, metadata: dict[str, Any]) -> None:
    report = {
        "step": failure.step,
        "first_example": failure.first_example,
        "metrics": failure.metrics,
        **metadata,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2, default=str))

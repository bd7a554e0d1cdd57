"""A task of which a part is trained: the rest is an input of its step, as frozen encoders are."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from contextdiff_jax.training.parameter_names import (
    by_name,
    check_patterns,
    like,
    matches,
    merged,
    nested,
    without,
)
from contextdiff_jax.training.task import Batch, Metrics, Params, Task


@dataclasses.dataclass(frozen=True)
class PartialTask:
    """The task, seen by the loop as one with fewer parameters: those that are not in `fixed`.

    fixed: nested dicts, the part of the task's parameters that stays as it is: host arrays, or
    their shapes alone.
    """

    task: Task
    fixed: Params

    @property
    def frozen(self) -> Any:
        """What the task has frozen, and the fixed parameters."""
        return {"task": self.task.frozen, "params": self.fixed}

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`, boxed with logical axis names."""
        boxed = jax.eval_shape(self.task.init, jax.random.key(0))
        return {"task": self.task.boxed_frozen(), "params": like(boxed, self.fixed)}

    def identities(self) -> dict[str, str]:
        """Returns the identities of the frozen encoders."""
        return self.task.identities()

    def collate(self, captions: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays that `loss` reads of a batch's captions."""
        return self.task.collate(captions, warn)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a training batch."""
        return self.task.batch_shapes(batch_size)

    def init(self, key: jax.Array) -> Params:
        """Returns the task's fresh parameters without the fixed ones, boxed."""
        return without(self.task.init(key), self.fixed)

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The task's loss."""
        return self.task.loss(*_whole(params, frozen), batch, key)

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """The task's costlier metrics."""
        return self.task.diagnose(*_whole(params, frozen), batch, key)

    def preview(self, params: Params, frozen: Any, seed: int) -> jax.Array | None:
        """The task's preview."""
        return self.task.preview(*_whole(params, frozen), seed)


def fixed_shapes(task: Task, trainable: Sequence[str], where: str) -> Params:
    """Returns the shapes of the parameters that are not trained, as nested dicts, not boxed.

    trainable: patterns of names; none stands for all. Raises ValueError naming the key `where`
    and a pattern that matches nothing.
    """
    if not trainable:
        return {}
    shapes = by_name(jax.eval_shape(task.init, jax.random.key(0)))
    check_patterns(trainable, shapes, where)
    return nested({n: leaf for n, leaf in shapes.items() if not matches(n, trainable)})


def trained_part(task: Task, fixed: Params) -> Task:
    """Returns the task as the loop trains it, with these parameters fixed."""
    return PartialTask(task, fixed) if fixed else task


def _whole(params: Params, frozen: Any) -> tuple[Params, Any]:
    return merged(params, frozen["params"]), frozen["task"]

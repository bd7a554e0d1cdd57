"""What the training loop asks of a task. Implementations live in contextdiff_jax/tasks."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

Params = Any
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Task(Protocol):
    """One objective over one kind of batch.

    params is a tree of float32 arrays; frozen a tree of arrays that training never changes and
    checkpoints never hold (their identity is recorded instead).
    """

    @property
    def frozen(self) -> Any: ...

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`, boxed with logical axis names."""

    def identities(self) -> dict[str, str]:
        """Returns the identities of what is frozen."""

    def collate(self, captions: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays that `loss` reads of a batch's captions.

        warn: name what is cut off of them.
        """

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a training batch: uint8 images and the arrays of `collate`."""

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters, boxed with logical axis names (nn.LogicallyPartitioned)."""

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the scalar float32 loss and scalar metrics of one (micro-)batch."""

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Returns costlier scalar metrics of a few examples; called rarely. May be empty."""

    def preview(self, params: Params, frozen: Any, seed: int) -> jax.Array | None:
        """Returns images (N, H, W, 3) in [-1, 1] for the run's preview prompts, or None."""

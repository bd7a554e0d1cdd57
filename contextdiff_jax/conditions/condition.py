"""What every condition answers: what it reads, its parameters, what it gives the networks.

A condition that is made of the picture itself (a low-resolution version) adds its arrays to the
batch on the device, by `of_target` in training and `of_before` in a cascade.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

Batch = Mapping[str, jax.Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Given:
    """What one condition gives the networks, for a batch.

    present (B,) bool: False where there is no condition at all (an empty prompt).
    tokens (B, L, D), mask (B, L): what the denoiser attends to; None for a condition without.
    adapter_tokens (B, L', D'), adapter_mask (B, L'): what the adapter attends to; None without.
    inputs: the denoiser's further inputs by name, each (B, ...).
    """

    present: jax.Array
    tokens: jax.Array | None = None
    mask: jax.Array | None = None
    adapter_tokens: jax.Array | None = None
    adapter_mask: jax.Array | None = None
    inputs: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


jax.tree_util.register_dataclass(Given)


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition; the defaults are those of one without parameters that captions give.

    name: of its value in a request to sample.
    null: the value that stands for no condition.
    captioned: whether the captions of the data are its values.
    droppable: whether training hides it at times, and guidance too.
    of_picture: whether it is made of the picture itself, or of the one a stage before drew.
    empty_request: whether a request that names it may be for no condition at all.
    """

    name: ClassVar[str]
    null: ClassVar[Any] = ""
    captioned: ClassVar[bool] = True
    droppable: ClassVar[bool] = True
    of_picture: ClassVar[bool] = False
    empty_request: ClassVar[bool] = True

    # -- host side ----------------------------------------------------------------------------

    @staticmethod
    def check(value: Any) -> None:
        """Raises ValueError, saying what it must be, for a request's value that is not allowed.

        Where `conditions` of a task's config has the condition itself and not its type, this may be
        a method that reads its fields.
        """
        if not isinstance(value, str):
            raise ValueError("must be a text")

    def collate(self, values: Sequence[Any], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays that `encode` reads, for values of examples or requests.

        warn: name what is cut off. Raises ValueError for a value that is not allowed.
        """
        return {}

    def shapes(self, batch_size: int) -> Shapes:
        """Returns the shapes of what a training batch holds of it."""
        return {}

    def drawn_over(self, value: Any, picture: np.ndarray) -> np.ndarray | None:
        """Returns a picture uint8 (H, W, 3), perhaps larger, with what a value says drawn over it.

        None where the condition says nothing of places. The size depends on the picture's alone.
        """
        return None

    def adapter_places(self, value: Any) -> dict[str, list[int]] | None:
        """Returns, by name, the places of the adapter's tokens of what a value says is where.

        None where the condition says nothing of places.
        """
        return None

    # -- parameters ---------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Any:
        """Returns its trainable parameters, boxed with logical axis names; {} for none.

        Its entry "adapter" is what the adapter alone reads: it trains as the adapter does.
        """
        return {}

    def encoders(self) -> dict[str, Any]:
        """Returns its frozen encoders that are loaded, by what they are for."""
        return {}

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve, for checkpoints to record."""
        return {}

    def without_adapter(self) -> "Condition":
        """Returns the condition without what only the adapter reads."""
        return self

    @property
    def most_augmentation(self) -> float | None:
        """The largest noise level that a picture to enlarge has in training; None without one."""
        return None

    # -- on the device ------------------------------------------------------------------------

    def of_target(self, pictures: jax.Array, key: jax.Array | None) -> dict[str, jax.Array]:
        """Returns its arrays, made of the true pictures (B, H, W, C) in [-1, 1].

        key: None makes them clean.
        """
        return {}

    def of_before(self, images: jax.Array, level: float, keys: jax.Array) -> dict[str, jax.Array]:
        """Returns its arrays, made of the pictures (B, h, w, C) that the stage before drew."""
        return {}

    def encode(self, params: Any, frozen: Mapping[str, Any], batch: Batch) -> Given:
        """Returns what it gives the networks.

        params: of `init`. frozen: the encoders' parameters by their identity, which no gradient
        reaches. Pure.
        """
        raise NotImplementedError

    def protocol(self) -> dict[str, str]:
        """Returns how it is made, where a measurement depends on it."""
        return {}


def hidden(given: Given, visible: jax.Array) -> Given:
    """Returns it with examples where `visible` (B,) is False turned to no condition."""
    return dataclasses.replace(given, present=jnp.logical_and(given.present, visible))

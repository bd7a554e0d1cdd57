"""What every condition answers: what it reads, its parameters, what it gives the networks.

A batch holds the arrays of all conditions of a task side by side, so that their names must differ.
A condition that is made of the picture itself (a low-resolution version) adds its arrays to the
batch on the device, by `of_target` in training and `of_before` in a cascade.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

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


def attended(
    given: Mapping[str, Given], visible: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array] | None:
    """Returns tokens (B, L, D), mask (B, L) and keep (B,) of all that the denoiser attends to.

    visible: by condition, (B,) bool. A hidden condition's tokens are masked where there are others;
    where nothing is left keep is False, and the network's own null token stands for all. None where
    no condition has tokens.
    """
    found = [
        (each.tokens, each.mask, visible[name] & each.present)
        for name, each in given.items()
        if each.tokens is not None
    ]
    if not found:
        return None
    if len(found) == 1:
        return found[0]
    tokens, masks, shown = zip(*found, strict=True)
    mask = [mask & seen[:, None] for mask, seen in zip(masks, shown, strict=True)]
    keep = jnp.stack(shown).any(axis=0)
    return jnp.concatenate(tokens, axis=1), jnp.concatenate(mask, axis=1), keep


def adapter_reads(
    given: Mapping[str, Given], whose: Literal["own", "shuffled", "none"] = "own"
) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens (B, L, D) and mask (B, L) of all that the adapter attends to.

    whose: the condition of each picture, of the one before it in the batch, or no condition: see
    DiffusionConfig.adapter_condition. Raises ValueError where no condition has any tokens.
    """
    found = [
        (each.adapter_tokens, each.adapter_mask & each.present[:, None])
        for each in given.values()
        if each.adapter_tokens is not None
    ]
    if not found:
        raise ValueError("an adapter needs a condition with tokens for it")
    tokens, mask = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    if whose == "shuffled":
        return jnp.roll(tokens, 1, axis=0), jnp.roll(mask, 1, axis=0)
    return (tokens, mask) if whose == "own" else (jnp.zeros_like(tokens), jnp.zeros_like(mask))


def denoiser_inputs(
    given: Mapping[str, Given], keep: Mapping[str, jax.Array] | None
) -> dict[str, jax.Array]:
    """Returns the denoiser's arguments beside x and t.

    keep: by condition, where it sees what can be hidden; None leaves the argument out.
    """
    inputs = merged(each.inputs for each in given.values())
    visible = {name: jnp.ones(each.present.shape, bool) for name, each in given.items()}
    visible |= keep or {}
    read = attended(given, visible)
    if read is None:
        return inputs
    tokens, mask, shown = read
    inputs |= {"text": tokens, "text_mask": mask}
    return inputs if keep is None else inputs | {"keep": shown}


def merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what several conditions have, as one; ValueError where two have the same name."""
    found: dict[str, Any] = {}
    for part in parts:
        twice = found.keys() & part.keys()
        if twice:
            raise ValueError(f"two conditions have {', '.join(sorted(twice))}: names must differ")
        found |= part
    return found

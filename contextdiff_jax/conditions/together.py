"""The conditions of one task together: what they hold, who sees which, what the networks read.

A batch holds the arrays of all conditions side by side, so that their names must differ.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Batch, Condition, Given
from contextdiff_jax.spaces.pixels import from_uint8

Visible = dict[str, jax.Array]  # by condition, (B,) bool


def init_all(conditions: Sequence[Condition], key: jax.Array) -> dict[str, Any]:
    """Returns the parameters of the conditions that have some, by their names, boxed."""
    made = {
        condition.name: condition.init(jax.random.fold_in(key, number))
        for number, condition in enumerate(conditions)
    }
    return {name: params for name, params in made.items() if params}


def encode_all(
    conditions: Sequence[Condition],
    own: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Batch,
    known: Mapping[str, Given] | None = None,
) -> dict[str, Given]:
    """Returns what the conditions give the networks, by their names.

    own: of `init_all`. frozen: the encoders' parameters by identity. known: what is not made anew.
    """
    found = known or {}
    return {
        each.name: found[each.name]
        if each.name in found
        else each.encode(own.get(each.name, {}), frozen, batch)
        for each in conditions
    }


def made_of_target(
    conditions: Sequence[Condition], batch: Batch, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Returns what conditions make of the batch's own pictures; see `Condition.of_target`.

    batch: "image" uint8 (B, H, W, C), where a condition is made of it. key: None makes it clean.
    """
    found: dict[str, jax.Array] = {}
    making = [condition for condition in conditions if condition.of_picture]
    for number, condition in enumerate(making):
        own = key if key is None or not number else jax.random.fold_in(key, number)
        found |= condition.of_target(from_uint8(batch["image"]), own)
    return found


def draw_hidden(
    conditions: Sequence[Condition], shares: tuple[float, float], key: jax.Array, count: int
) -> tuple[Visible, Visible]:
    """Draws, for each condition that can be hidden by itself, where it is.

    shares: of the examples, hidden from the denoiser, and from the adapter too. Returns where it is
    shown at all (not where it is never hidden from both), and where the denoiser sees it.
    """
    from_denoiser, from_both = shares
    shown, keep = {}, {}
    for number, condition in enumerate(each for each in conditions if each.droppable):
        own = key if not number else jax.random.fold_in(key, number)
        denoiser_key, both_key = jax.random.split(own)
        keep[condition.name] = ~jax.random.bernoulli(denoiser_key, from_denoiser, (count,))
        if from_both:
            shown[condition.name] = ~jax.random.bernoulli(both_key, from_both, (count,))
    return shown, keep


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

"""Which style is a picture in? A small network, trained on pictures of known styles.

It is trained anew for each evaluation, by fixed seeds: the same data and versions give the same
network. How often it is right on pictures it has not seen stands beside what it measures.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

SIDE = 32  # of the pictures as it sees them
_WIDTHS = (24, 48, 96)
_STEPS, _BATCH, _RATE = 400, 64, 3e-3
_AT_A_TIME = 256


class _Network(nn.Module):
    styles: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, SIDE, SIDE, 3) in [-1, 1] to logits (B, styles)."""
        for width in _WIDTHS:
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), strides=2)(x)))
        return nn.Dense(self.styles)(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class StyleClassifier:
    """names: the styles, in the order of the logits. params: of the network."""

    names: tuple[str, ...]
    params: Any

    def __call__(self, pictures: np.ndarray) -> list[str]:
        """Returns the most likely style of each picture (N, H, W, 3) uint8."""
        logits = _Network(len(self.names)).apply({"params": self.params}, _shrunk(pictures))
        return [self.names[place] for place in np.asarray(logits).argmax(axis=1)]

    def protocol(self) -> str:
        """Says how it was made."""
        return f"{len(_WIDTHS)} convolutions at {SIDE} px, {_STEPS} steps of {_BATCH}, seed 0"


@jax.jit
def _as_seen(pictures: jax.Array) -> jax.Array:
    small = (*pictures.shape[:1], SIDE, SIDE, 3)
    return jax.image.resize(pictures.astype(jnp.float32) / 127.5 - 1, small, "linear")


def _shrunk(pictures: np.ndarray) -> np.ndarray:
    """Returns what the network sees of pictures; part by part, as large ones are many bytes."""
    starts = range(0, len(pictures), _AT_A_TIME)
    return np.concatenate([_as_seen(pictures[start : start + _AT_A_TIME]) for start in starts])


def train_classifier(pictures: np.ndarray, styles: Sequence[str]) -> StyleClassifier:
    """Returns a classifier of pictures (N, H, W, 3) uint8 in these styles.

    Raises ValueError where there are fewer than two styles.
    """
    names = tuple(sorted(set(styles)))
    if len(names) < 2:
        raise ValueError(
            f"styles of the training pictures: {', '.join(names) or '(none)'}: must be two or more"
        )
    images = _shrunk(pictures)
    labels = np.array([names.index(style) for style in styles])
    network, rng = _Network(len(names)), np.random.default_rng(0)
    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, _STEPS))
    params = network.init(jax.random.key(0), images[:1])["params"]

    def loss(params: Any, batch: jax.Array, wanted: jax.Array) -> jax.Array:
        logits = network.apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

    @jax.jit
    def step(params: Any, state: Any, batch: jax.Array, wanted: jax.Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss)(params, batch, wanted), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(_STEPS):
        chosen = rng.integers(len(images), size=_BATCH)
        params, state = step(params, state, images[chosen], labels[chosen])
    return StyleClassifier(names, params)

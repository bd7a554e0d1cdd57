"""The context-aware adapter of a clip: r(x0, c, t) of its latents, frame by frame.

Its image tokens need pixels of x0 at every step, for which a first stage would cost more than the
U-Net: colours are an affine function of latents, fitted on the clip, the same in tuning and in
drawing. Its text tokens are those that the U-Net attends to.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.process import Relation
from contextdiff_jax.encoders.frozen import ImageEncoder
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.training.task import Params

COLOURS = "colours"  # the fit's place among what is frozen
_RIDGE = 1e-4


def fit_colours(latents: jax.Array, pictures: jax.Array) -> jax.Array:
    """Returns (c + 1, 3) of least squares from latents (F, h, w, c) to pictures (F, H, W, 3).

    pictures: in [-1, 1]; averaged over each latent's patch.
    """
    frames, height, width, channels = latents.shape
    factor = pictures.shape[1] // height
    patches = pictures.reshape(frames, height, factor, width, factor, 3).mean((2, 4))
    rows = _with_one(latents.reshape(-1, channels))
    squares = rows.T @ rows / len(rows) + _RIDGE * jnp.eye(channels + 1)
    return jnp.linalg.solve(squares, rows.T @ patches.reshape(-1, 3) / len(rows))


def colours_of(fit: jax.Array, x0: jax.Array) -> jax.Array:
    """Returns pictures (B, h, w, 3) in [-1, 1] of latents (B, h, w, c), by a fit."""
    return jnp.clip(_with_one(x0) @ fit, -1.0, 1.0)


def _with_one(latents: jax.Array) -> jax.Array:
    return jnp.concatenate([latents, jnp.ones((*latents.shape[:-1], 1))], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipAdapter:
    """An adapter with `frames`, and CLIP, which sees the frames' colours for it."""

    module: Adapter
    image: ImageEncoder

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> Params:
        """Returns fresh parameters for latents of this shape (h, w, c), boxed."""
        frames, config = self.module.frames, self.module.config
        clip = self.image.module.config
        tokens = 1 + (clip.image_size // clip.patch_size) ** 2
        return self.module.init(
            key,
            jnp.zeros((frames, *shape)),
            jnp.ones(frames),
            jnp.zeros((frames, tokens, config.image_dim)),
            jnp.zeros((frames, 1, config.text_dim)),
        )["params"]

    def relation(
        self, params: Params, frozen: Mapping[str, Any], text: jax.Array, mask: jax.Array
    ) -> Relation:
        """Returns relation(x0, times) under a prompt: text (1, L, D), mask (1, L) bool.

        params: of the adapter. frozen: CLIP's parameters by identity, and the fit at COLOURS.
        """

        def relation(x0: jax.Array, times: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            given = self._given(frozen, text, mask, x0)
            return tuple(self.module.apply({"params": params}, x0, t, *given) for t in times)

        return relation

    def maps(
        self,
        params: Params,
        frozen: Mapping[str, Any],
        text: jax.Array,
        mask: jax.Array,
        x0: jax.Array,
        time: jax.Array,
    ) -> jax.Array:
        """Returns the attention of image to text tokens over x0 at a time, (F, Q, L).

        The mean over blocks and heads; the arguments are those of `relation`.
        """
        given = self._given(frozen, text, mask, x0)
        maps = self.module.apply({"params": params}, x0, time, *given, return_maps=True)[1]
        return maps.mean((1, 2))

    def _given(
        self, frozen: Mapping[str, Any], text: jax.Array, mask: jax.Array, x0: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Returns what the adapter reads beside x0 and the time."""
        pictures = colours_of(frozen[COLOURS], x0)
        tokens = self.image.tokens(frozen[self.image.identity], pictures)
        return tokens, *(jnp.repeat(each, len(x0), axis=0) for each in (text, mask))

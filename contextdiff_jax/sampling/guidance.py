"""Classifier-free guidance as one doubled batch, and thresholding of the estimate.

Only the DENOISER's condition is dropped. x_t carries the true condition through its bias, so the
adapter always receives that, and f(x_t, null) is the unconditional estimate on the contextualized
trajectory: x0_hat = f_null + w (f_c - f_null), then the threshold, then the bias of x0_hat.

THE DOUBLED BATCH. Example i of B becomes the neighbours 2i (condition kept) and 2i + 1 (dropped):
x (2B, ...), t (2B,), keep (2B,) = True, False, True, False, ... A closure over conditions of B
examples brings them to the size it is called with by `match_batch(conditions, x.shape[0])`.
Neighbours, not halves, because a batch split over devices then doubles and halves in place, with
no communication.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.predictions import PredictionKind, to_eps, to_x0
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.sampling.config import SamplerConfig

# denoise(x (B, ...), t float32 (B,), keep bool (B,)) -> prediction like x.
Denoise = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

Tree = TypeVar("Tree")


def match_batch(tree: Tree, batch: int) -> Tree:
    """Returns the tree of arrays (B, ...) as it is where batch = B, doubled where batch = 2B."""

    def match(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] == batch:
            return leaf
        if 2 * leaf.shape[0] == batch:
            return jnp.repeat(leaf, 2, axis=0)
        raise ValueError(
            f"conditions of {leaf.shape[0]} examples for a batch of {batch}: "
            "the batch must be as large, or twice as large under guidance"
        )

    return jax.tree.map(match, tree)


def predict(denoise: Denoise, x: jax.Array, t: jax.Array, keep: jax.Array) -> jax.Array:
    """Returns the denoiser's prediction in float32 for x (B, ...), an integer t and keep (B,).

    Raises ValueError where it does not have the shape of x.
    """
    prediction = denoise(x, jnp.full(x.shape[:1], t, jnp.float32), keep)
    if prediction.shape != x.shape:
        raise ValueError(
            f"the denoiser returned shape {prediction.shape} for x of shape {x.shape}: "
            "they must agree"
        )
    return prediction.astype(jnp.float32)


def guided_x0(
    schedule: Schedule,
    denoise: Denoise,
    x: jax.Array,
    t: jax.Array,
    sampler: SamplerConfig,
    prediction: PredictionKind,
) -> jax.Array:
    """Returns the guided and thresholded estimate of x0, like x (B, ...), at the integer t ()."""
    batch, scale = x.shape[0], sampler.guidance_scale
    if scale in (0, 1):
        predicted = predict(denoise, x, t, jnp.full((batch,), scale == 1))
        return threshold_x0(to_x0(prediction, schedule, predicted, x, t), sampler)
    doubled = match_batch(x, 2 * batch)
    keep = jnp.arange(2 * batch) % 2 == 0
    predicted = predict(denoise, doubled, t, keep)
    if sampler.guidance_space == "eps":
        eps = _mix(to_eps(prediction, schedule, predicted, doubled, t), scale)
        x0_hat = to_x0("eps", schedule, eps, x, t)
    else:
        x0_hat = _mix(to_x0(prediction, schedule, predicted, doubled, t), scale)
    return threshold_x0(x0_hat, sampler)


def _mix(doubled: jax.Array, scale: float) -> jax.Array:
    pairs = doubled.reshape((-1, 2) + doubled.shape[1:])
    kept, dropped = pairs[:, 0], pairs[:, 1]
    return dropped + scale * (kept - dropped)


def threshold_x0(x0_hat: jax.Array, sampler: SamplerConfig) -> jax.Array:
    """Returns the estimate (B, ...) within [-1, 1], or as it is with threshold none."""
    if sampler.threshold == "static":
        return jnp.clip(x0_hat, -1.0, 1.0)
    if sampler.threshold == "dynamic":
        return dynamic_threshold(x0_hat, sampler.percentile, sampler.max_threshold)
    return x0_hat


def dynamic_threshold(
    x0_hat: jax.Array, percentile: float, max_threshold: float | None = None
) -> jax.Array:
    """Imagen's dynamic thresholding (Saharia et al. 2022, section 2.3), per example.

    s is the percentile (0..100] of |x0_hat| over an example's values, at least 1 and at most
    max_threshold; the example is clipped to [-s, s] and divided by s.
    """
    s = _percentile(jnp.abs(x0_hat).reshape(x0_hat.shape[0], -1), percentile)
    s = jnp.clip(s, 1.0, max_threshold).reshape((-1,) + (1,) * (x0_hat.ndim - 1))
    return jnp.clip(x0_hat, -s, s) / s


def _percentile(values: jax.Array, percentile: float) -> jax.Array:
    """Linear interpolation of order statistics of (B, n), as `numpy.percentile` has it.

    The place is computed in float64 and only the values above it are sorted out; jnp.percentile
    computes it in float32, which is off for images.
    """
    n = values.shape[1]
    place = percentile / 100 * (n - 1)
    below = min(int(place), max(n - 2, 0))
    top = jax.lax.top_k(values, n - below)[0]
    low, high = top[:, -1], top[:, max(-2, -top.shape[1])]
    return low + np.float32(place - below) * (high - low)

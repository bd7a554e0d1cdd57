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
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.predictions import to_x0
from contextdiff_jax.diffusion.process import Process, checked_prediction
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.diffusion.shapes import Data, Time
from contextdiff_jax.sampling.config import SamplerConfig

# A denoiser under control: (x, t, keep) -> (prediction like x, what rides along).
Controlled = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

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


def inside_interval(schedule: Schedule, sampler: SamplerConfig, times: np.ndarray) -> np.ndarray:
    """Returns where guidance applies, bool (n,): times whose level lies in the interval.

    (Kynkäänniemi et al. 2024, "Applying guidance in a limited interval".)
    """
    level = schedule.guidance_level(times)
    low, high = sampler.guidance_low, sampler.guidance_high
    return (level >= (low or 0.0)) & (level <= (np.inf if high is None else high))


def steps_alike(schedule: Schedule, sampler: SamplerConfig, times: np.ndarray) -> np.ndarray:
    """Returns how many times in a row just before each are guided as it is, int (n,).

    times: (n,), falling. What a sampler may mix estimates of: across an end of the interval they
    jump, and a line through both sides would guide by another scale.
    """
    if sampler.guidance_scale in (0, 1):
        return np.arange(len(times))
    inside = inside_interval(schedule, sampler, times)
    number = np.arange(len(times))
    jumps = np.concatenate([[False], inside[1:] != inside[:-1]])
    return number - np.maximum.accumulate(np.where(jumps, number, 0))


def guided_x0(
    process: Process,
    denoise: Controlled,
    x: Data,
    t: Time,
    sampler: SamplerConfig,
    guide: jax.Array | bool = True,
) -> tuple[Data, Any]:
    """Returns the guided and thresholded estimate of x0, like x (B, ...), at the integer t ().

    guide () bool: False takes the conditional estimate alone, in one undoubled call. It is not read
    where the sampler has no interval.
    The second value is what rides along the denoiser's call, see `control`.
    """
    scale = sampler.guidance_scale
    if scale in (0, 1):
        x0_hat, state = _single(process, denoise, x, t, keep=scale == 1)
    elif sampler.guidance_low is None and sampler.guidance_high is None:
        x0_hat, state = _doubled(process, denoise, x, t, sampler)
    else:
        x0_hat, state = jax.lax.cond(
            guide,
            lambda: _doubled(process, denoise, x, t, sampler),
            lambda: _single(process, denoise, x, t, keep=True),
        )
    return threshold_x0(process, x0_hat, t, sampler), state


def _single(process: Process, denoise: Controlled, x, t, keep: bool) -> tuple[jax.Array, Any]:
    predicted, state = _predict(denoise, x, t, jnp.full(x.shape[:1], keep))
    return process.x0_of(predicted, x, t), state


def _doubled(process: Process, denoise: Controlled, x, t, sampler) -> tuple[jax.Array, Any]:
    scale, batch = sampler.guidance_scale, x.shape[0]
    doubled = match_batch(x, 2 * batch)
    predicted, state = _predict(denoise, doubled, t, jnp.arange(2 * batch) % 2 == 0)
    if sampler.guidance_space == "eps":
        eps = _mix(process.eps_of(predicted, doubled, t), scale)
        return to_x0("eps", process.schedule, eps, x, t), state
    return _mix(process.x0_of(predicted, doubled, t), scale), state


def _predict(denoise: Controlled, x, t, keep) -> tuple[jax.Array, Any]:
    predicted, state = denoise(x, jnp.full(x.shape[:1], t, jnp.float32), keep)
    return checked_prediction(predicted, x), state


def _mix(doubled: jax.Array, scale: float) -> jax.Array:
    pairs = doubled.reshape((-1, 2) + doubled.shape[1:])
    kept, dropped = pairs[:, 0], pairs[:, 1]
    return dropped + scale * (kept - dropped)


def threshold_x0(process: Process, x0_hat: Data, t: Time, sampler: SamplerConfig) -> Data:
    """Returns the estimate (B, ...) within the bounds of x0, or as it is with threshold none."""
    if sampler.threshold == "static":
        return process.changed(x0_hat, t, process.bounded)
    if sampler.threshold == "dynamic":
        limits = sampler.percentile, sampler.max_threshold
        return process.changed(x0_hat, t, lambda x0: dynamic_threshold(x0, *limits))
    return x0_hat


def dynamic_threshold(x0_hat: Data, percentile: float, max_threshold: float | None = None) -> Data:
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

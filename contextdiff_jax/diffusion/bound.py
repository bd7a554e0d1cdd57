"""The exact variational bound of the biased process (ContextDiff, eq. 4), for bits per dimension.

    -log p(x0 | c) <= L_T + L_0 + sum over t = 2..T of E KL(q_t || p_t)

with q_t = q(x_{t-1} | x_t, x0, c), eq. 3, and p_t the same with x0_hat and its biases in place of
x0 and its own. Any falling sequence of times gives a bound; the paper's has every t.

All terms are in nats per example: (B,) float32, summed over the other axes of x0 (B, ...).

L_0 comes in two conventions that must not be mixed: `discretized_nll` on 8-bit data with
`bits_per_dim`, or `continuous_nll` on `dequantize`d data with `dequantized_bits_per_dim`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike
from jaxtyping import Float, UInt8

from contextdiff_jax.diffusion.marginals import Biased, posterior_coefficients
from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import Array, Bias, Data, PerExample, Time

_HALF_BIN = 1 / 255  # of 8-bit values mapped to [-1, 1]


def step_kl(
    schedule: Schedule,
    true: Biased,
    estimate: Biased,
    t: Time,
    s: Time | None = None,
) -> PerExample:
    """Returns the KL of the step from t to s < t; s is t - 1 if not given.

    With A, B the factors of x0 and x_t - b_t in eq. 3 and v its variance,
    || A (x0 - x0_hat) - B (b_t(x0) - b_t(x0_hat)) + b_s(x0) - b_s(x0_hat) ||^2 / (2 v).
    Where s = 0 it returns 0, for the term there is L_0.
    """
    t = jnp.asarray(t)
    s = t - 1 if s is None else jnp.asarray(s)
    of_x0, of_x_t, variance = posterior_coefficients(schedule, t, s)
    difference = (
        expand(of_x0, true.x0) * (true.x0 - estimate.x0)
        - expand(of_x_t, true.x0) * (true.bias_t - estimate.bias_t)
        + (true.bias_s - estimate.bias_s)
    )
    precision = jnp.where(s == 0, 0.0, 1 / jnp.where(s == 0, 1.0, variance))
    return 0.5 * precision * _sum_example(jnp.square(difference))


def prior_kl(schedule: Schedule, x0: Data, bias_last: Bias) -> PerExample:
    """Returns L_T = KL(q(x_T | x0, c) || N(0, I)), with the bias b_T at the last time."""
    alpha_bar = schedule.alpha_bar[-1]
    spread = np.float32(-alpha_bar - np.log1p(-alpha_bar))  # v - ln v - 1 with v = 1 - ab_T
    mean = np.float32(np.sqrt(alpha_bar)) * x0 + bias_last
    return 0.5 * _sum_example(jnp.square(mean) + spread)


def decoder_std(schedule: Schedule, before: int = 2, last: int = 1) -> float:
    """Returns the standard deviation of p(x0 | x_last): that of the posterior one step earlier.

    before, last: the two smallest times of the process that are not 0. The posterior at `last` has
    none of its own; DDPM and guided-diffusion (fixed small variance) do the same.
    """
    first, second = schedule.alpha_bar[last], schedule.alpha_bar[before]
    return float(np.sqrt((1 - first) * (1 - second / first) / (1 - second)))


def discretized_nll(x0: Data, mean: Data, std: float) -> PerExample:
    """Returns L_0 = -log P(x0) where P integrates N(mean, std^2) over the 8-bit bin of x0.

    x0: float32 8-bit values mapped by v / 127.5 - 1. The bins of 0 and 255 are open outwards
    (Ho et al. 2020, eq. 13). Probabilities are differenced as logarithms, so nothing is clamped.
    """
    centred = x0 - mean
    upper, lower = (centred + _HALF_BIN) / std, (centred - _HALF_BIN) / std
    # By symmetry, difference the tail in which both probabilities are small.
    above = centred > 0
    log_large = log_ndtr(jnp.where(above, -lower, upper))
    log_small = log_ndtr(jnp.where(above, -upper, lower))
    inside = log_large + _log1mexp(log_small - log_large)
    log_probability = jnp.where(
        x0 < -1 + _HALF_BIN,
        log_ndtr(upper),
        jnp.where(x0 > 1 - _HALF_BIN, log_ndtr(-lower), inside),
    )
    return -_sum_example(log_probability)


def continuous_nll(x0: Data, mean: Data, std: float) -> PerExample:
    """Returns L_0 = -log N(x0; mean, std^2 I), a density: for data from `dequantize` only."""
    constant = np.float32(np.log(std) + 0.5 * np.log(2 * np.pi))
    return _sum_example(0.5 * jnp.square((x0 - mean) / std) + constant)


def bound_term(
    schedule: Schedule,
    true: Biased,
    estimate: Biased,
    t: Time,
    nll: Callable[[jax.Array, jax.Array, float], jax.Array],
    s: Time | None = None,
    std: float | None = None,
) -> PerExample:
    """Returns the bound's term from t to s: the KL, or L_0 by `nll` (one of the two) where s = 0.

    s: t - 1 if not given. std: the decoder's, `decoder_std` of the times visited; of all times if
    not given. As an objective: T times the mean over uniform t, plus `prior_kl`, estimates the
    bound.
    """
    s = jnp.asarray(t) - 1 if s is None else jnp.asarray(s)
    std = decoder_std(schedule) if std is None else std

    def decoder() -> jax.Array:
        return nll(true.x0, estimate.x0, std)

    def kl() -> jax.Array:
        return step_kl(schedule, true, estimate, t, s)

    if s.ndim == 0:  # L_0 costs more than the rest; once is enough
        return jax.lax.cond(s == 0, decoder, kl)
    return jnp.where(s == 0, decoder(), kl())


def dequantize(
    pixels: UInt8[Array, "*data"], uniform: Float[ArrayLike, "*#data"]
) -> Float[Array, "*data"]:
    """Returns float32 data in [-1, 1) from 8-bit pixels and uniform noise in [0, 1)."""
    return (pixels.astype(jnp.float32) + uniform) / 128 - 1


def bits_per_dim(nats: Float[ArrayLike, "*nats"], num_dims: int) -> Float[ArrayLike, "*nats"]:
    """Converts nats per example of a bound with `discretized_nll` to bits per dimension."""
    return nats / (num_dims * np.float32(np.log(2)))


def dequantized_bits_per_dim(
    nats: Float[ArrayLike, "*nats"], num_dims: int
) -> Float[ArrayLike, "*nats"]:
    """Converts nats per example of a bound with `continuous_nll` on `dequantize`d data.

    A bin has the width 2^-7, which adds 7 bits per dimension.
    """
    return bits_per_dim(nats, num_dims) + 7


def _sum_example(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _log1mexp(d: jax.Array) -> jax.Array:
    """log(1 - exp(d)) for d < 0, with finite gradients in both branches."""
    near = d > -np.log(2)
    return jnp.where(
        near,
        jnp.log(-jnp.expm1(jnp.where(near, d, -1.0))),
        jnp.log1p(-jnp.exp(jnp.where(near, -1.0, d))),
    )

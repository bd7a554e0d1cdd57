"""The biased forward process and its posterior (ContextDiff, eqs. 1-3).

Each is the ordinary Gaussian of x - b, because the bias b_t = k_t r(x0, c, t) shifts x_t and
nothing else. x0, x_t: (B, ...) float32; times t > s: integers, () or (B,); a bias: broadcastable
to x0. Eqs. 2 and 3 hold for any s < t, so respaced processes need no formulas of their own.
"""

from typing import NamedTuple

import jax.numpy as jnp

from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import At, Bias, Data, Factor, Time, Times


class Biased(NamedTuple):
    """x0 (B, ...), true or estimated, with its biases at both times t > s of a step."""

    x0: Data
    bias_t: Bias
    bias_s: Bias


def diffuse(schedule: Schedule, x0: Data, bias_t: Bias, t: Time, noise: Data) -> Data:
    """Draws x_t of q(x_t | x0, c) = N(sqrt(ab_t) x0 + b_t, (1 - ab_t) I), eq. 1, from N(0, I)."""
    return expand(schedule.signal(t), x0) * x0 + bias_t + expand(schedule.sigma(t), x0) * noise


def transition(
    schedule: Schedule,
    x_s: Data,
    bias_s: Bias,
    bias_t: Bias,
    s: Time,
    t: Time,
) -> tuple[Data, Factor]:
    """Returns mean and variance (broadcastable) of q(x_t | x_s, x0, c), s < t, eq. 2."""
    root = expand(jnp.exp(0.5 * schedule.log_ratio(t, s)), x_s)
    return root * (x_s - bias_s) + bias_t, expand(schedule.beta(t, s), x_s)


def posterior(
    schedule: Schedule,
    x_t: Data,
    given: Biased,
    t: Time,
    s: Time,
) -> tuple[Data, Factor]:
    """Returns mean and variance (broadcastable) of q(x_s | x_t, x0, c), s < t, eq. 3."""
    of_x0, of_x_t, variance = posterior_coefficients(schedule, t, s)
    x0, bias_t, bias_s = given
    mean = expand(of_x0, x_t) * x0 + expand(of_x_t, x_t) * (x_t - bias_t) + bias_s
    return mean, expand(variance, x_t)


def posterior_coefficients(schedule: Schedule, t: Times, s: Times) -> tuple[At, At, At]:
    """Returns the factors of x0 and of x_t - b_t in the mean of eq. 3, and its variance."""
    share = schedule.variance(s) / schedule.variance(t)
    beta = schedule.beta(t, s)
    of_x0 = schedule.signal(s) * beta / schedule.variance(t)
    of_x_t = jnp.exp(0.5 * schedule.log_ratio(t, s)) * share
    return of_x0, of_x_t, share * beta

"""One general step of the sampler, and its inverse.

From t to any s < t, with the estimate x0_hat of x0 and its biases b_t(x0_hat), b_s(x0_hat):

    sigma^2 = eta^2 (1 - ab_s)/(1 - ab_t) (1 - ab_t/ab_s)
    x_s     = sqrt(ab_s) x0_hat + b_s + sqrt(1 - ab_s - sigma^2) e + sigma noise
    e       = (x_t - sqrt(ab_t) x0_hat - b_t) / sqrt(1 - ab_t)

eta = 1 samples the posterior of eq. 3 (context-aware DDPM, eq. 7); eta = 0 is deterministic
(context-aware DDIM, eq. 11). x_t, x0_hat: (B, ...) float32; t, s: integers, () or (B,); a bias:
broadcastable to x_t, 0.0 for none. The estimate and its biases come as one `Biased`.
"""

import jax.numpy as jnp

from contextdiff_jax.diffusion.marginals import Biased, diffuse
from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import Bias, Data, Time


def noise_estimate(schedule: Schedule, x_t: Data, x0_hat: Data, bias_t: Bias, t: Time) -> Data:
    """Returns e, the noise in x_t if x0_hat is right, without the bias. t >= 1."""
    return (x_t - expand(schedule.signal(t), x_t) * x0_hat - bias_t) / expand(
        schedule.sigma(t), x_t
    )


def step(
    schedule: Schedule,
    x_t: Data,
    estimate: Biased,
    t: Time,
    s: Time,
    *,
    eta: float,
    noise: Data | None,
) -> Data:
    """Returns x_s for s < t. With s = 0 it is x0_hat + bias_s, without noise.

    eta: in 0..1. noise: N(0, I) like x_t; None is allowed where eta = 0.
    Raises ValueError where eta is outside 0..1, or above 0 without noise.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta}: must be in 0..1")
    if eta > 0 and noise is None:
        raise ValueError(f"eta = {eta}: a stochastic step needs noise")
    share = schedule.variance(s) / schedule.variance(t)
    # 1 - ab_s - sigma^2, written without a difference of nearly equal numbers.
    kept = (1 - eta**2) + eta**2 * jnp.exp(schedule.log_ratio(t, s)) * share
    direction = schedule.sigma(s) * jnp.sqrt(kept)
    x0_hat, bias_t, bias_s = estimate
    e = noise_estimate(schedule, x_t, x0_hat, bias_t, t)
    mean = expand(schedule.signal(s), x_t) * x0_hat + bias_s + expand(direction, x_t) * e
    if eta == 0:
        return mean
    return mean + expand(eta * jnp.sqrt(share * schedule.beta(t, s)), x_t) * noise


def inversion_step(
    schedule: Schedule,
    x_s: Data,
    estimate: Biased,
    t: Time,
    s: Time,
    *,
    noise_at_zero: Data,
) -> Data:
    """Returns x_t for t > s: the deterministic step read backwards.

    noise_at_zero: the noise e to use where s = 0, for clean data does not determine it.
    """
    clean = expand(jnp.asarray(s) == 0, x_s)
    x0_hat, bias_t, bias_s = estimate
    e = noise_estimate(schedule, x_s, x0_hat, bias_s, jnp.maximum(s, 1))
    return diffuse(schedule, x0_hat, bias_t, t, jnp.where(clean, noise_at_zero, e))

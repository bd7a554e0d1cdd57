"""The biased process: chains against marginals, posteriors against numerical Bayes."""

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.marginals import Biased, diffuse, posterior, transition
from contextdiff_jax.diffusion.schedules import make_schedule

RNG = np.random.default_rng(0)


def test_composed_transitions_have_the_biased_marginals_as_moments():
    schedule = make_schedule("cosine", 20)
    x0 = RNG.normal(size=(2, 5)).astype(np.float32)
    # An arbitrary bias at each time, with none at 0.
    biases = RNG.normal(size=(21, 2, 5)).astype(np.float32)
    biases[0] = 0
    mean, variance = x0, 0.0
    for t in range(1, 21):
        # The mean is affine in x_s; its slope carries the variance on.
        at_mean, added = transition(schedule, mean, biases[t - 1], biases[t], t - 1, t)
        moved, _ = transition(schedule, mean + 1, biases[t - 1], biases[t], t - 1, t)
        mean, variance = at_mean, (moved - at_mean) ** 2 * variance + added
        alpha_bar = schedule.alpha_bar[t]
        np.testing.assert_allclose(mean, np.sqrt(alpha_bar) * x0 + biases[t], atol=3e-6)
        np.testing.assert_allclose(variance, np.full((2, 5), 1 - alpha_bar), rtol=2e-5)


def test_simulated_chain_against_diffuse():
    schedule = make_schedule("linear", 10)
    count = 40_000
    x0 = np.float32([0.7, -0.4])
    relation = np.sin(3 * x0 + np.arange(11)[:, None]).astype(np.float32)
    biases = np.asarray(schedule.gain(np.arange(11)))[:, None] * relation
    x = np.broadcast_to(x0, (count, 2))
    for t in range(1, 11):
        mean, variance = transition(schedule, x, biases[t - 1], biases[t], t - 1, t)
        x = np.asarray(mean) + np.sqrt(variance) * RNG.normal(size=x.shape)
        one_shot = diffuse(
            schedule, np.broadcast_to(x0, x.shape), biases[t], t, RNG.normal(size=x.shape)
        )
        # Five standard errors of a difference of two means, and of two deviations.
        deviation = np.sqrt(1 - schedule.alpha_bar[t])
        error = 5 * deviation * np.sqrt(2 / count)
        np.testing.assert_allclose(x.mean(0), np.mean(one_shot, 0), atol=error)
        np.testing.assert_allclose(x.std(0), np.std(one_shot, 0), atol=error)


@pytest.mark.parametrize(
    ("t", "s"), [(1000, 999), (500, 499), (2, 1), (900, 300), (40, 1), (10, 0)]
)
@pytest.mark.parametrize("name", ["cosine", "scaled_linear"])
def test_posterior_against_bayes_on_a_grid(name, t, s):
    schedule = make_schedule(name, 1000)
    ab_t, ab_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    x0, bias_t, bias_s = 0.6, 0.13, (0.0 if s == 0 else -0.21)
    x_t = np.sqrt(ab_t) * x0 + bias_t - 0.7 * np.sqrt(1 - ab_t)
    x_t, *given = (jnp.full((1,), v) for v in (x_t, x0, bias_t, bias_s))
    mean, variance = posterior(schedule, x_t, Biased(*given), t, s)
    if s == 0:
        np.testing.assert_allclose([mean[0], variance], [x0, 0], atol=1e-6)
        return
    centre, half = np.sqrt(ab_s) * x0 + bias_s, 9 * np.sqrt(1 - ab_s)
    grid = np.linspace(centre - half, centre + half, 2_000_001)
    log_prior = -((grid - centre) ** 2) / (2 * (1 - ab_s))
    root = np.sqrt(ab_t / ab_s)
    onward = root * grid + bias_t - root * bias_s  # eq. 2
    log_likelihood = -((float(x_t[0]) - onward) ** 2) / (2 * (1 - ab_t / ab_s))
    weight = np.exp(log_prior + log_likelihood - np.max(log_prior + log_likelihood))
    weight /= weight.sum()
    expected = np.sum(weight * grid)
    np.testing.assert_allclose(mean[0], expected, atol=2e-6)
    np.testing.assert_allclose(variance, np.sum(weight * (grid - expected) ** 2), rtol=1e-5)


def test_times_per_example():
    schedule = make_schedule("cosine", 100)
    x0, noise, bias = (RNG.normal(size=(3, 4, 4, 2)).astype(np.float32) for _ in range(3))
    t, s = np.array([100, 60, 1]), np.array([20, 59, 0])
    x_t = diffuse(schedule, x0, bias, t, noise)
    together = posterior(schedule, x_t, Biased(x0, bias, bias), t, s)
    for i in range(3):
        x_t = diffuse(schedule, x0[i : i + 1], bias[i], t[i], noise[i : i + 1])
        mean, variance = posterior(schedule, x_t, Biased(x0[i], bias[i], bias[i]), t[i], s[i])
        np.testing.assert_allclose(together[0][i], mean[0], atol=1e-6)
        np.testing.assert_allclose(together[1][i, 0, 0, 0], variance, rtol=1e-6)

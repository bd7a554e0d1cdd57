"""The general step: against marginals, against the posterior, and its inverse."""

import numpy as np
import pytest

from contextdiff_jax.diffusion.marginals import Biased, posterior
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.diffusion.steps import inversion_step, noise_estimate, step

SCHEDULE = make_schedule("cosine", 1000)
JUMPS = [(1000, 999), (1000, 1), (501, 500), (900, 100), (3, 2), (2, 1), (40, 0), (1, 0)]
X_T, X0, BIAS_T, BIAS_S, NOISE = (
    np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
)
GIVEN = Biased(X0, BIAS_T, BIAS_S)


@pytest.mark.parametrize(("t", "s"), JUMPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_a_step_with_the_true_x0_maps_marginal_to_marginal(t, s, eta):
    ab_t, ab_s = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[s]
    bias_s = BIAS_S * (s > 0)

    def from_offset(offset, noise):
        x_t = np.float32(np.sqrt(ab_t)) * X0 + BIAS_T + np.float32(offset)
        return step(SCHEDULE, x_t, Biased(X0, BIAS_T, bias_s), t, s, eta=eta, noise=noise)

    mean = from_offset(0, 0 * NOISE)
    np.testing.assert_allclose(mean, np.sqrt(ab_s) * X0 + bias_s, atol=2e-6)
    # The step is affine in x_t and in the noise, so the variance at s is that of two terms. A large
    # offset keeps the rounding of mean out of the slopes.
    of_x_t = (from_offset(1e3, 0 * NOISE) - mean) / 1e3
    of_noise = (from_offset(0, 1e3 + 0 * NOISE) - mean) / 1e3
    variance = of_x_t**2 * (1 - ab_t) + of_noise**2
    np.testing.assert_allclose(variance, np.full(X0.shape, 1 - ab_s), rtol=1e-5, atol=1e-12)
    if eta == 0:
        assert np.all(np.asarray(of_noise) == 0)


@pytest.mark.parametrize(("t", "s"), JUMPS)
def test_eta_one_is_the_posterior(t, s):
    mean, variance = posterior(SCHEDULE, X_T, GIVEN, t, s)
    drawn = step(SCHEDULE, X_T, GIVEN, t, s, eta=1.0, noise=NOISE)
    np.testing.assert_allclose(drawn, mean + np.sqrt(variance) * NOISE, atol=3e-6)


def test_the_last_step_returns_the_estimate():
    for eta in (0.0, 1.0):
        last = step(SCHEDULE, X_T, Biased(X0, BIAS_T, 0.0), 20, 0, eta=eta, noise=NOISE)
        np.testing.assert_allclose(last, X0, atol=1e-6)


@pytest.mark.parametrize(("t", "s"), [jump for jump in JUMPS if jump[1] > 0])
def test_inversion_undoes_the_deterministic_step(t, s):
    x_s = step(SCHEDULE, X_T, GIVEN, t, s, eta=0.0, noise=None)
    back = inversion_step(SCHEDULE, x_s, GIVEN, t, s, noise_at_zero=np.nan * X_T)
    # Rounding in x_s is divided by sigma_s.
    sigma = np.sqrt(1 - SCHEDULE.alpha_bar[[s, t]])
    np.testing.assert_allclose(back, X_T, atol=2e-6 * sigma[1] / sigma[0])


def test_inversion_from_zero_needs_and_uses_the_noise():
    noise = noise_estimate(SCHEDULE, X_T, X0, BIAS_T, 30)
    back = inversion_step(SCHEDULE, X0, Biased(X0, BIAS_T, 0.0), 30, 0, noise_at_zero=noise)
    np.testing.assert_allclose(back, X_T, atol=2e-6)


def test_times_per_example():
    t, s = np.array([700, 1]), np.array([650, 0])
    together = step(SCHEDULE, X_T, GIVEN, t, s, eta=0.5, noise=NOISE)
    for i in range(2):
        given = Biased(X0[i], BIAS_T[i], BIAS_S[i])
        one = step(SCHEDULE, X_T[i], given, t[i], s[i], eta=0.5, noise=NOISE[i])
        np.testing.assert_allclose(together[i], one, atol=1e-6)


def test_bad_eta_and_missing_noise_are_refused():
    with pytest.raises(ValueError, match=r"eta = 1.5: must be in 0..1"):
        step(SCHEDULE, X_T, Biased(X0, 0.0, 0.0), 2, 1, eta=1.5, noise=NOISE)
    with pytest.raises(ValueError, match=r"eta = 0.5.*needs noise"):
        step(SCHEDULE, X_T, Biased(X0, 0.0, 0.0), 2, 1, eta=0.5, noise=None)

"""The bound against the exact ELBO of a Gaussian model and integrals; the toy analysis (A.4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from contextdiff_jax.diffusion import bound
from contextdiff_jax.diffusion.marginals import Biased, diffuse, posterior
from contextdiff_jax.diffusion.schedules import make_schedule

RNG = np.random.default_rng(0)
MEAN, STD = 0.3, 0.5


def negative_elbo(alpha_bar: np.ndarray, phi: float, decoder_std: float) -> float:
    """-ELBO of x0 ~ N(MEAN, STD^2), r = phi x0, the optimal estimator; exact, in float64.

    Independent of eqs. 3 and 4: the chain is simulated in its coefficients by eq. 2 and every
    conditional comes from Gaussian conditioning.
    """
    steps = len(alpha_bar) - 1
    root = np.sqrt(alpha_bar)
    gain = root * (1 - root) * phi
    # x_t = of_x0[t] x0 + of_noise[t] . e with independent standard e.
    of_x0, of_noise = np.zeros(steps + 1), np.zeros((steps + 1, steps))
    of_x0[0] = 1
    for t in range(1, steps + 1):
        a = np.sqrt(alpha_bar[t] / alpha_bar[t - 1])
        of_x0[t] = a * of_x0[t - 1] + gain[t] - a * gain[t - 1]
        of_noise[t] = a * of_noise[t - 1]
        of_noise[t, t - 1] = np.sqrt(1 - a**2)
    given_x0 = of_noise @ of_noise.T
    cov = STD**2 * np.outer(of_x0, of_x0) + given_x0

    def gaussian(log_variance, squared):  # E[-log N]
        return 0.5 * (np.log(2 * np.pi) + log_variance + squared / np.exp(log_variance))

    total = gaussian(0.0, cov[steps, steps] + (of_x0[steps] * MEAN) ** 2)
    for t in range(1, steps + 1):
        # x0_hat = E[x0 | x_t]; p's mean is q's mean given x0, at x0_hat. Centred: all have mean 0.
        estimate = cov[0, t] / cov[t, t]
        if t == 1:
            slope, variance = estimate, decoder_std**2
        else:
            pull = given_x0[t - 1, t] / given_x0[t, t]
            slope = of_x0[t - 1] * estimate + pull * (1 - of_x0[t] * estimate)
            variance = given_x0[t - 1, t - 1] - pull * given_x0[t - 1, t]
        residual = cov[t - 1, t - 1] - 2 * slope * cov[t - 1, t] + slope**2 * cov[t, t]
        total += gaussian(np.log(variance), residual)
    entropy = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * given_x0[1:, 1:])[1]
    return total - entropy


@pytest.mark.parametrize("phi", [0.0, 0.8, -0.5])
def test_the_terms_sum_to_the_elbo_of_a_gaussian_model(phi):
    schedule = make_schedule("cosine", 8)
    alpha_bar = schedule.alpha_bar
    factor = np.sqrt(alpha_bar) * (1 + (1 - np.sqrt(alpha_bar)) * phi)
    # Every term is quadratic in (x0, eps): 3-point Gauss-Hermite integrates it exactly.
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    x0, noise = (grid.ravel().astype(np.float32) for grid in np.meshgrid(nodes, nodes))
    x0 = (MEAN + STD * x0)[:, None]
    noise = noise[:, None]

    def biases(x, t):
        return schedule.gain(t) * phi * x, schedule.gain(t - 1) * phi * x

    std = bound.decoder_std(schedule)
    total = weights @ np.asarray(bound.prior_kl(schedule, x0, biases(x0, 8)[0]))
    for t in range(1, 9):
        true = Biased(x0, *biases(x0, t))
        x_t = diffuse(schedule, x0, true.bias_t, t, noise)
        spread = factor[t] ** 2 * STD**2 + 1 - alpha_bar[t]
        x0_hat = MEAN + factor[t] * STD**2 / spread * (x_t - factor[t] * MEAN)
        estimate = Biased(x0_hat, *biases(x0_hat, t))
        term = bound.bound_term(schedule, true, estimate, t, bound.continuous_nll)
        total += weights @ np.asarray(term)
    assert total == pytest.approx(negative_elbo(alpha_bar, phi, std), rel=1e-5)
    # A bound: not below the entropy of the data.
    assert total > 0.5 * np.log(2 * np.pi * np.e * STD**2)


@pytest.mark.parametrize(("t", "s"), [(8, 7), (2, 1), (8, 3)])
def test_step_kl_is_the_kl_of_the_two_posteriors(t, s):
    schedule = make_schedule("cosine", 8)
    x_t, *drawn = RNG.normal(size=(7, 1, 2)).astype(np.float32)
    true, estimate = Biased(*drawn[:3]), Biased(*drawn[3:])
    ours = bound.step_kl(schedule, true, estimate, t, s)
    means, variance = zip(
        posterior(schedule, x_t, true, t, s),
        posterior(schedule, x_t, estimate, t, s),
        strict=True,
    )
    scale = float(np.sqrt(np.asarray(variance[0]).item()))
    expected = 0.0
    for i in range(2):
        q, p = (stats.norm(float(mean[0, i]), scale) for mean in means)
        expected += integrate.quad(
            lambda x, q=q, p=p: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)),
            q.mean() - 10 * scale,
            q.mean() + 10 * scale,
        )[0]
    assert float(ours[0]) == pytest.approx(expected, rel=1e-4)
    default = bound.step_kl(schedule, true, estimate, t)
    assert (s == t - 1) == bool(np.allclose(default, ours))


def test_prior_kl_against_integration_includes_the_bias():
    schedule = make_schedule("scaled_linear", 1000)
    x0, bias = np.float32([[0.8, -1.0]]), np.float32([[0.05, -0.03]])
    alpha_bar = schedule.alpha_bar[-1]
    expected = 0.0
    for value, shift in zip(x0[0], bias[0], strict=True):
        q, p = stats.norm(np.sqrt(alpha_bar) * value + shift, np.sqrt(1 - alpha_bar)), stats.norm()
        expected += integrate.quad(
            lambda x, q=q, p=p: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -9, 9
        )[0]
    assert float(bound.prior_kl(schedule, x0, bias)[0]) == pytest.approx(expected, rel=1e-4)
    assert float(bound.prior_kl(schedule, x0, 0.0)[0]) < 0.8 * expected


def test_terms_sum_over_all_axes_but_the_first():
    schedule = make_schedule("cosine", 10)
    arrays = RNG.normal(size=(6, 4, 2, 3, 2)).astype(np.float32)
    t = np.array([2, 5, 9, 10])
    kl = bound.step_kl(schedule, Biased(*arrays[:3]), Biased(*arrays[3:]), t)
    flat = []
    for i in range(4):
        values = arrays[:, i].reshape(6, -1, 1)
        term = bound.step_kl(schedule, Biased(*values[:3]), Biased(*values[3:]), t[i])
        flat.append(term.sum())
    np.testing.assert_allclose(kl, flat, rtol=1e-5)
    for nll in (bound.discretized_nll, bound.continuous_nll):
        assert nll(arrays[0], arrays[1], 0.5).shape == (4,)
    assert bound.prior_kl(schedule, arrays[0], arrays[1]).shape == (4,)


@pytest.mark.parametrize("std", [0.003, 0.01, 0.3, 3.0])
@pytest.mark.parametrize("mean", [-1.3, -0.02, 0.4, 1.0])
def test_discretized_gaussian_against_scipy(std, mean):
    values = np.arange(256)
    x0 = (values / 127.5 - 1).astype(np.float32)[:, None]
    ours = np.asarray(bound.discretized_nll(x0, np.full_like(x0, mean), std))
    centre = values / 127.5 - 1 - mean
    edges = np.stack([centre - 1 / 255, centre + 1 / 255]) / std
    edges[0, 0], edges[1, -1] = -np.inf, np.inf
    # Differences of the tail in which the probabilities are small.
    edges = np.where(centre > 0, -edges[::-1], edges)
    probability = stats.norm.cdf(edges[1]) - stats.norm.cdf(edges[0])
    near = probability > 1e-280
    np.testing.assert_allclose(ours[near], -np.log(probability[near]), rtol=2e-4, atol=2e-4)
    assert np.all(np.isfinite(ours))
    assert np.exp(-ours).sum() == pytest.approx(1, rel=1e-3)


def test_gradients_are_finite_far_in_the_tails_and_at_every_time():
    schedule = make_schedule("cosine", 1000)
    x0 = np.float32([[-1.0], [0.0], [1.0], [0.5]])

    def objective(x0_hat, t):
        true, estimate = (Biased(x, 0.1 * x, 0.1 * x) for x in (x0, x0_hat))
        return jnp.sum(bound.bound_term(schedule, true, estimate, t, bound.discretized_nll))

    far = np.float32([[1.0], [-1.0], [-1.0], [0.5]])
    for t in (1, 2, 1000):
        gradient = jax.grad(objective)(far, np.full(4, t))
        assert np.isfinite(gradient).all() and np.abs(gradient[0]) > 0


def test_decoder_std_is_the_posterior_at_the_second_step():
    schedule = make_schedule("linear", 1000)
    _, variance = posterior(schedule, jnp.zeros(1), Biased(jnp.zeros(1), 0.0, 0.0), 2, 1)
    assert bound.decoder_std(schedule) == pytest.approx(float(variance) ** 0.5, rel=1e-5)


def test_respaced_terms_end_in_a_decoder_of_their_own():
    schedule = make_schedule("cosine", 20)
    _, variance = posterior(schedule, jnp.zeros(1), Biased(jnp.zeros(1), 0.0, 0.0), 12, 5)
    std = bound.decoder_std(schedule, before=12, last=5)
    assert std == pytest.approx(float(variance) ** 0.5, rel=1e-5)
    arrays = RNG.normal(size=(6, 3, 2)).astype(np.float32)
    pair = Biased(*arrays[:3]), Biased(*arrays[3:])
    nll = bound.discretized_nll
    steps = [(12, 5), (5, 0)]
    expected = [bound.step_kl(schedule, *pair, 12, 5), nll(arrays[0], arrays[3], std)]
    for (t, s), term in zip(steps, expected, strict=True):
        ours = bound.bound_term(schedule, *pair, t, nll, s=s, std=std)
        np.testing.assert_allclose(ours, term, rtol=1e-6)
    many = bound.bound_term(
        schedule, *pair, np.array([12, 5, 12]), nll, s=np.array([5, 0, 5]), std=std
    )
    np.testing.assert_allclose(many, np.stack(expected)[[0, 1, 0], [0, 1, 2]], rtol=1e-6)


def test_both_conventions_give_eight_bits_for_uniform_pixels():
    # A density of 1/2 on [-1, 1) against a probability of 1/256 per value.
    dims = 12
    assert float(bound.bits_per_dim(dims * np.log(256.0), dims)) == pytest.approx(8)
    assert float(bound.dequantized_bits_per_dim(dims * np.log(2.0), dims)) == pytest.approx(8)
    pixels = np.array([0, 255], np.uint8)
    np.testing.assert_allclose(bound.dequantize(pixels, 0.5), [-1 + 1 / 256, 1 - 1 / 256])


def test_continuous_nll_against_scipy():
    x0, mean = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    expected = -stats.norm.logpdf(x0, mean, 0.2).sum(1)
    np.testing.assert_allclose(bound.continuous_nll(x0, mean, 0.2), expected, rtol=1e-5)


@pytest.mark.parametrize("phi", [0.0, 1.0])
@pytest.mark.parametrize("t", [5, 25, 45])
def test_toy_analysis_error_of_the_optimal_estimator(phi, t):
    """Appendix A.4: the error with r = phi x0, by regression on simulated x_t."""
    schedule = make_schedule("cosine", 50)
    alpha_bar, k = schedule.alpha_bar[t], float(schedule.gain(t))
    x0 = (MEAN + STD * RNG.normal(size=(100_000, 1))).astype(np.float32)
    noise = RNG.normal(size=x0.shape).astype(np.float32)
    x_t = np.asarray(diffuse(schedule, x0, k * phi * x0, t, noise))
    covariance = np.cov(x0[:, 0], x_t[:, 0])
    simulated = covariance[0, 0] - covariance[0, 1] ** 2 / covariance[1, 1]
    signal = (np.sqrt(alpha_bar) + k * phi) ** 2 * STD**2
    analysis = STD**2 * (1 - alpha_bar) / (signal + 1 - alpha_bar)
    # Relative standard error sqrt(2 / N) of a residual variance: five of them.
    assert simulated == pytest.approx(analysis, rel=5 * np.sqrt(2 / 1e5))
    without = STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)
    assert (analysis < without) == (phi > 0)

"""The bound's terms against NumPy in float64: guided-diffusion's loop, eq. 3, closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.evaluation.bound_terms import bound_terms, visited_times
from contextdiff_jax.sampling.noise import sample_keys, step_noise
from tests.oracles.gaussian_data import GaussianData

SHAPE = (4, 4, 3)
KEYS = sample_keys(3, np.arange(3))
VALUES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE))
VALUES[0, 0] = [[0, 255, 0]] * 4  # the open bins
X0 = VALUES / 127.5 - 1


def run(process, denoise, x0, keys, **options):
    jitted = jax.jit(functools.partial(bound_terms, process, denoise, **options))
    return jitted(jnp.asarray(x0, jnp.float32), keys)


def noise_at(t, keys=KEYS, shape=SHAPE):
    return np.asarray(step_noise(keys, t, shape), np.float64)


# A denoiser both can compute: eps (B, ...) of x and t, not a good one.
def eps_of(module, x, t):
    return 0.9 * x + 0.3 * module.sin(3 * x) * t / 30


def denoise_eps(x, t, keep):
    return eps_of(jnp, x, t[:, None, None, None])


def guided_diffusion_terms(betas, x0, clip):
    """calc_bpd_loop of guided-diffusion (fixed small variance, eps), written anew in float64."""
    alphas_cumprod = np.cumprod(1 - betas)
    before = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1 - before) / (1 - alphas_cumprod)
    log_variance = np.log(np.append(posterior_variance[1], posterior_variance[1:]))
    coef_x0 = betas * np.sqrt(before) / (1 - alphas_cumprod)
    coef_x_t = (1 - before) * np.sqrt(1 - betas) / (1 - alphas_cumprod)
    bits = lambda nats: nats.reshape(len(x0), -1).mean(1) / np.log(2)  # noqa: E731
    terms, errors = [], []
    for i in range(len(betas))[::-1]:  # their t is ours minus 1
        noise = noise_at(i + 1)
        x_t = np.sqrt(alphas_cumprod[i]) * x0 + np.sqrt(1 - alphas_cumprod[i]) * noise
        x0_hat = np.sqrt(1 / alphas_cumprod[i]) * x_t
        x0_hat = x0_hat - np.sqrt(1 / alphas_cumprod[i] - 1) * eps_of(np, x_t, i + 1)
        x0_hat = np.clip(x0_hat, -1, 1) if clip else x0_hat
        true_mean = coef_x0[i] * x0 + coef_x_t[i] * x_t
        mean = coef_x0[i] * x0_hat + coef_x_t[i] * x_t
        kl = 0.5 * (true_mean - mean) ** 2 * np.exp(-log_variance[i])
        scale = np.exp(0.5 * log_variance[i])
        upper = np.where(x0 > 0.999, np.inf, (x0 - mean + 1 / 255) / scale)
        lower = np.where(x0 < -0.999, -np.inf, (x0 - mean - 1 / 255) / scale)
        nll = -np.log(np.maximum(stats.norm.cdf(upper) - stats.norm.cdf(lower), 1e-12))
        terms.append(bits(kl if i else nll))
        errors.append(((x0 - x0_hat) ** 2).reshape(len(x0), -1).mean(1))
    mean, log_var = np.sqrt(alphas_cumprod[-1]) * x0, np.log(1 - alphas_cumprod[-1])
    prior = bits(0.5 * (-1 - log_var + np.exp(log_var) + mean**2))
    return prior, np.stack(terms, 1), np.stack(errors, 1)


@pytest.mark.parametrize("clip", [True, False])
def test_without_bias_it_is_guided_diffusions_loop(clip):
    betas = np.linspace(1e-4, 0.02, 30) * (1000 / 30)
    schedule = make_schedule("linear", 30)
    np.testing.assert_allclose(np.cumprod(1 - betas), schedule.alpha_bar[1:], rtol=1e-12)
    prior, terms, errors = guided_diffusion_terms(betas, X0, clip)
    ours = run(Process(schedule, "eps"), denoise_eps, X0, KEYS, clip=clip)
    assert terms[:, -1].max() < 20  # no probability at their floor of 1e-12, which we have not
    np.testing.assert_allclose(ours.prior, prior, rtol=1e-5)
    np.testing.assert_allclose(ours.terms, terms, rtol=2e-4)
    np.testing.assert_allclose(ours.x0_mse, errors, rtol=2e-4)


def relation_of(module, x0, t):
    return module.tanh(2 * x0 + 0.1) * (1 + t / 12)


def relation(x0, times):
    return tuple(relation_of(jnp, x0, t[:, None, None, None]) for t in times)


@pytest.mark.parametrize("num_terms", [0, 5])
def test_with_the_bias_each_kl_is_that_of_the_posteriors_of_eq_3(num_terms):
    schedule = make_schedule("cosine", 12)
    times = visited_times(schedule, num_terms)
    assert len(times) == (num_terms or 12) + 1 and (times[0], times[-2], times[-1]) == (12, 1, 0)
    ab = schedule.alpha_bar
    bias = lambda x0, t: np.sqrt(ab[t]) * (1 - np.sqrt(ab[t])) * relation_of(np, x0, max(t, 1))  # noqa: E731

    def posterior(x_t, x0, t, s):
        beta, root = 1 - ab[t] / ab[s], np.sqrt(ab[t] / ab[s])
        mean = np.sqrt(ab[s]) * beta * x0 + root * (1 - ab[s]) * (x_t - bias(x0, t))
        return mean / (1 - ab[t]) + bias(x0, s), beta * (1 - ab[s]) / (1 - ab[t])

    expected = []
    for t, s in zip(times[:-2], times[1:-1], strict=True):
        x_t = np.sqrt(ab[t]) * X0 + bias(X0, t) + np.sqrt(1 - ab[t]) * noise_at(t)
        x0_hat = np.clip(0.7 * np.sin(x_t), -1, 1)
        (true, variance), (model, _) = posterior(x_t, X0, t, s), posterior(x_t, x0_hat, t, s)
        expected.append(((true - model) ** 2).reshape(3, -1).mean(1) / (2 * variance) / np.log(2))
    denoise = lambda x, t, keep: 0.7 * jnp.sin(x)  # noqa: E731
    ours = run(Process(schedule, "x0", relation), denoise, X0, KEYS, times=times)
    np.testing.assert_allclose(ours.terms[:, :-1], np.stack(expected, 1), rtol=2e-4)
    mean = np.sqrt(ab[12]) * X0 + bias(X0, 12)
    prior = 0.5 * (mean**2 - ab[12] - np.log1p(-ab[12])).reshape(3, -1).mean(1) / np.log(2)
    np.testing.assert_allclose(ours.prior, prior, rtol=1e-4)


@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_gaussian_data_whose_bound_is_known(phi):
    """x0 ~ N(m, s^2), r = phi x0, the optimal denoiser: the error is that of appendix A.4."""
    schedule = make_schedule("cosine", 10)
    toy = GaussianData(schedule, "v", phi=phi)
    count, shape = 3000, (2, 1, 1)
    x0 = toy.mean + toy.std * np.random.default_rng(1).normal(size=(count, *shape))
    keys = sample_keys(0, np.arange(count))
    process = Process(schedule, "v", toy.relation if phi else None)
    ours = run(process, toy.denoise, x0, keys, clip=False)
    root = np.sqrt(schedule.alpha_bar)
    gain, variance = root * (1 - root) * phi, 1 - root**2
    error = toy.std**2 * variance / ((root + gain) ** 2 * toy.std**2 + variance)
    t, s = np.arange(10, 1, -1), np.arange(9, 0, -1)
    beta = 1 - (root[t] / root[s]) ** 2
    of_bias = gain[s] - root[t] / root[s] * variance[s] / variance[t] * gain[t]
    factor = root[s] * beta / variance[t] + of_bias
    kl = factor**2 * error[t] / (2 * variance[s] * beta / variance[t]) / np.log(2)
    for found, expected in (
        (ours.terms[:, :-1], kl),
        (ours.terms[:, :-1].sum(1, keepdims=True), kl.sum()),
        (ours.x0_mse, error[:0:-1]),
        (
            ours.prior[:, None],
            ((root[10] + gain[10]) ** 2 * (toy.mean**2 + toy.std**2) - root[10] ** 2)
            / (2 * np.log(2))
            - np.log2(variance[10]) / 2,
        ),
    ):
        found = np.asarray(found, np.float64)
        spread = found.std(axis=0, ddof=1) / np.sqrt(count)
        assert np.all(np.abs(found.mean(axis=0) - expected) < 4 * spread)
        assert np.all(spread < 0.1 * found.mean(axis=0))


def test_an_image_does_not_depend_on_its_batch():
    schedule = make_schedule("cosine", 12)
    denoise = lambda x, t, keep: 0.7 * jnp.sin(x)  # noqa: E731
    process = Process(schedule, "x0", relation)
    whole = run(process, denoise, X0, KEYS)
    alone = run(process, denoise, X0[1:2], KEYS[1:2])
    for ours, theirs in zip(jax.tree.leaves(whole), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[1:2], theirs, rtol=1e-5)


def test_refusals():
    schedule = make_schedule("cosine", 12)
    for count in (1, 13, -1):
        with pytest.raises(ValueError, match=rf"num_terms = {count}: must be 0 .* in 2..12"):
            visited_times(schedule, count)
    for times in ([11, 5, 0], [12, 5, 1], [12, 0], [12, 12, 0]):
        with pytest.raises(ValueError, match="must fall from 12 to 0"):
            bound_terms(Process(schedule, "x0"), None, X0, KEYS, times=np.array(times))

"""The density by the flow's ODE against Gaussians and mixtures in closed form, and exact traces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.evaluation.ode_likelihood import (
    BITS_OF_A_BIN,
    dequantized,
    ode_terms,
    solver_times,
)
from contextdiff_jax.sampling.noise import sample_keys

MEAN = np.array([0.4, -0.2, 0.0, 1.0]).reshape(2, 2, 1)
STD = np.array([0.1, 0.3, 1.0, 2.0]).reshape(2, 2, 1)


def run(process, denoise, x, *, steps=40, probes=1, seed=0):
    """Returns -log p in nats (B, P)."""
    times = solver_times(process.schedule, steps)
    jitted = jax.jit(functools.partial(ode_terms, process, denoise, times=times, probes=probes))
    found = jitted(jnp.asarray(x, jnp.float32), sample_keys(seed, np.arange(len(x))))
    return np.asarray(found.prior[:, None] + found.volume) * x[0].size * np.log(2)


def gaussian_velocity(x, t, slope):
    """E[u | x_t] of x0 ~ N(MEAN, STD^2) and r = slope (x0 - MEAN)."""
    factor = (1 - t) * (1 + t * slope)
    share = (x - (1 - t) * MEAN) / (factor**2 * STD**2 + t**2)
    residual = factor * STD**2 * share
    return t * share - MEAN - residual + (1 - 2 * t) * slope * residual


@pytest.mark.parametrize(
    ("prediction", "slope", "shift"), [("v", 0.0, 1.0), ("v", 1.5, 3.0), ("x0", 0.0, 3.0)]
)
def test_of_gaussians_it_is_their_density_for_every_relation(prediction, slope, shift):
    path = LinearPath(1000, shift)

    def denoise(x, told, keep):
        place = told[:, None, None, None] / 1000
        t = shift * place / (1 + (shift - 1) * place)
        v = gaussian_velocity(x, t, slope)
        return v if prediction == "v" else x - t * v

    x = MEAN + STD * np.random.default_rng(0).normal(size=(5, 2, 2, 1))
    found = run(FlowProcess(path, prediction, bounds=None), denoise, x)
    expected = -stats.norm.logpdf(x, MEAN, STD).sum(axis=(1, 2, 3))
    # Beside the solver's error there is that of the velocity held below the first time.
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-3)


# Three narrow Gaussians in the plane: the Jacobian is not diagonal. r is a number for each of them,
# which is no affine relation.
WEIGHTS = np.array([0.5, 0.3, 0.2])
CENTRES = np.array([[-0.8, 0.3], [0.5, 0.6], [0.4, -0.7]])
SPREAD = 0.3


def mixture_velocity(x, t, r):
    """E[u | x_t] for x (..., 2), t a number and r (3, 2)."""
    centres = (1 - t) * CENTRES + t * (1 - t) * r
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    away = x[..., None, :] - centres
    chance = jax.nn.softmax(np.log(WEIGHTS) - jnp.square(away).sum(-1) / (2 * variance))
    # Given the component: E[eps] = t away / variance, E[x0] = centre + (1 - t) SPREAD^2 away / ...
    u = (t - (1 - t) * SPREAD**2) * away / variance - CENTRES + (1 - 2 * t) * r
    return jnp.sum(chance[..., None] * u, -2)


def mixture_density(x):
    inside = stats.norm.pdf(x[..., None, :], CENTRES, SPREAD).prod(-1)
    return (WEIGHTS * inside).sum(-1)


@pytest.fixture(scope="module")
def mixture():
    """Returns {r's size: (points (9, 2), -log p of them by each of 256 probes)}."""
    x = np.random.default_rng(1).normal(0, 0.7, (9, 2))
    process, found = FlowProcess(LinearPath(1000), "v", bounds=None), {}
    for size in (0.0, 1.5):
        r = size * np.array([[1.0, 0.2], [-0.5, 1.0], [0.3, -1.0]])
        denoise = lambda x, told, keep, r=r: mixture_velocity(x, told[0] / 1000, r)  # noqa: E731
        found[size] = x, run(process, denoise, x, probes=256)
    return found


@pytest.mark.parametrize("size", [0.0, 1.5])
def test_of_a_mixture_it_is_its_density_whatever_the_relation(mixture, size):
    grid = np.stack(np.mgrid[-3:3:0.05, -3:3:0.05], -1)
    assert mixture_density(grid).sum() * 0.05**2 == pytest.approx(1, abs=1e-6)
    x, found = mixture[size]
    error = found.std(axis=1, ddof=1) / np.sqrt(found.shape[1])
    assert np.all(error > 0) and np.all(error < 0.06)
    away = np.abs(found.mean(axis=1) + np.log(mixture_density(x)))
    assert np.all(away < 4 * error + 3e-3)


def test_the_mean_of_the_signs_is_the_exact_trace():
    """Of v = A x a step adds span e^T A e: the trace plus or minus what is off the diagonal."""
    matrix, span = np.array([[0.7, 0.5], [-1.2, 0.4]], np.float32), 0.5
    process = FlowProcess(LinearPath(1000), "v", bounds=None)

    def linear(x, told, keep):
        return x @ matrix.T

    x, keys = jnp.ones((1, 2)), sample_keys(0, np.arange(1))
    times = np.array([0.2, 0.2 + span])
    found = ode_terms(process, linear, x, keys, times=times, probes=2000)
    grown = -np.asarray(found.volume[0]) * 2 * np.log(2)
    low, high = span * (1.1 - 0.7), span * (1.1 + 0.7)
    upper = grown > span * 1.1
    np.testing.assert_allclose(grown, np.where(upper, high, low), rtol=1e-5)
    assert upper.mean() == pytest.approx(0.5, abs=0.05)
    fewer = ode_terms(process, linear, x, keys, times=times, probes=5)
    np.testing.assert_array_equal(fewer.volume[0], found.volume[0, :5])


def test_steps_begin_at_zero_and_end_the_first_at_the_first_time():
    path = LinearPath(1000, 2.0)
    times = solver_times(path, 12)
    assert times[[0, -1]].tolist() == [0, 1] and len(times) == 13
    assert times[1] == pytest.approx(path.levels(np.array(1))[1])
    assert np.all(np.diff(times, 2) > 0)
    np.testing.assert_allclose(path.levels(path.places(times))[1], times, atol=1e-12)


def test_a_flat_density_needs_the_bits_of_a_pixel_and_bins_are_centred():
    values = np.arange(256, dtype=np.float32).reshape(1, 16, 16, 1).repeat(300, 0)
    keys = sample_keys(4, np.arange(300))
    found = np.asarray(dequantized(jnp.asarray(values / 127.5 - 1), keys))
    place = (found + 1) * 127.5 - values
    assert np.abs(place).max() <= 0.5 + 1e-3
    assert stats.kstest(place.ravel()[::7], stats.uniform(-0.5, 1).cdf).pvalue > 1e-3
    # 256 bins of equal mass: 8 bits.
    assert np.log2(256 / 127.5) + BITS_OF_A_BIN == pytest.approx(8)

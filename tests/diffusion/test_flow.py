"""The contextual flow: its identity, its relations against scipy, its laws in closed form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, integrate, optimize, stats

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.relations import Affine, bounded, from_modes, to_modes, whitened
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.loop import sample

PATH = LinearPath(1000)


@pytest.fixture(scope="module")
def relation():
    """A relation that differs between the two examples."""
    rng = np.random.default_rng(0)
    slope = rng.uniform(-0.7, 3, (2, 4, 4, 3))
    return Affine(*(jnp.asarray(a, jnp.float32) for a in (slope, rng.uniform(-1, 1, slope.shape))))


def test_modes_are_scipys_orthonormal_cosines():
    x = np.random.default_rng(1).normal(size=(2, 8, 6, 3)).astype(np.float32)
    modes = to_modes(x)
    np.testing.assert_allclose(modes, fft.dctn(x, norm="ortho", axes=(1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(from_modes(modes), x, atol=1e-5)


def test_the_landing_is_x0_and_the_relation(relation):
    """x_t - t u = x0 + t^2 r, u the derivative of the path, and x0 comes back of it."""
    process = FlowProcess(PATH, "v", None, None, relation)
    x0, noise = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    t = jnp.array([130, 970])
    x_t, u, r = process.between(x0, noise, t)
    time = (t / 1000)[:, None, None, None]
    np.testing.assert_allclose(process.x0_of(u, x_t, t), x0 + time**2 * r, atol=1e-5)
    landing = dataclasses.replace(process, prediction="x0")
    wrong = process.x0_of(u + 0.3, x_t, t)  # of a velocity that is 0.3 too large
    np.testing.assert_allclose(landing.error_of(wrong, x_t, u, t), 0.3, atol=1e-4)
    early = jnp.array([1, 25])  # below 0.05 the error of x0 counts less
    x_early, u_early, _ = process.between(x0, noise, early)
    missed = landing.error_of(process.x0_of(u_early + 0.3, x_early, early), x_early, u_early, early)
    np.testing.assert_allclose(missed[:, 0, 0, 0], [0.3 * 0.02, 0.3 * 0.5], atol=1e-4)
    after, before = (process.between(x0, noise, t + step)[0] for step in (1, -1))
    np.testing.assert_allclose(u, (after - before) / 0.002, atol=2e-3)
    np.testing.assert_allclose(relation.x0_of(x0 + time**2 * r, time), x0, atol=1e-4)
    clipped = process.changed(x0 + time**2 * r, t, lambda x: jnp.clip(x, -1, 1))
    expected = jnp.clip(x0, -1, 1)
    np.testing.assert_allclose(clipped, expected + time**2 * relation(expected), atol=1e-4)


@pytest.mark.parametrize("slope", [-3.0, -1.25, -1.0, 2.0])
def test_a_threshold_that_changes_nothing_leaves_the_landing(slope):
    """Also where the relation turns x0 around, or makes a mode of it vanish."""
    relation = Affine(jnp.full((4, 4, 3), slope), jnp.full((4, 4, 3), 0.2))
    process = FlowProcess(PATH, "v", None, None, relation)
    x0 = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    t, time = jnp.array([900, 900]), 0.9
    landing = x0 + time**2 * relation(x0)
    np.testing.assert_allclose(process.changed(landing, t, lambda x: x), landing, atol=1e-4)
    if abs(1 + time**2 * slope) > 0.1:
        np.testing.assert_allclose(relation.x0_of(landing, jnp.float32(time)), x0, atol=1e-4)


def test_raw_numbers_are_bounded_and_zero_is_no_relation():
    found = bounded(jnp.array([-100.0, 0.0, 0.1]), jnp.array([100.0, 0.0, 0.1]), 3.0)
    np.testing.assert_allclose(found.slope, [-3, 0, 3 * np.tanh(0.1 / 3)], atol=1e-6)
    np.testing.assert_allclose(found.offset, [3, 0, 3 * np.tanh(0.1 / 3)], atol=1e-6)


def test_whitening_is_a_residual_by_its_deviation():
    mean, std = np.full((2, 2, 1), 0.3, np.float32), np.array([[[0.0], [0.1]], [[1.0], [8.0]]])
    found = whitened(mean, jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(found(mean[None])[0], 0, atol=1e-4)
    rho = 1.2 * np.maximum(std, 1e-3) ** -0.8
    x = np.random.default_rng(2).normal(size=(3, 2, 2, 1))
    expected = fft.idctn(
        rho * fft.dctn(x - mean, norm="ortho", axes=(1, 2, 3)), norm="ortho", axes=(1, 2, 3)
    )
    np.testing.assert_allclose(found(x), expected, rtol=1e-3, atol=1e-3)


# -- in closed form: one value, x0 of a mixture, r affine or any number for each point ------------


def velocity(x, time, weights, points, r):
    """E[u | x_t] where x0 is one of `points` and r a number for each: exact for any relation."""
    centres = (1 - time) * points + time * (1 - time) * r
    away = x[..., None] - centres
    chance = jax.nn.softmax(jnp.log(weights) - jnp.square(away) / (2 * time**2))
    return jnp.sum(chance * (away / time - points + (1 - 2 * time) * r), -1)


@pytest.mark.parametrize("r", [(0.0, 0.0), (0.9, -0.9), (-2.0, 0.5), (3.0, 3.0)])
def test_the_exact_flow_returns_the_data_for_every_relation(r):
    """Two points, 0.3 and 0.7 of the mass; the sampler is told of no relation, and needs none."""
    weights, points = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.0])

    def denoise(x, t, keep):
        return velocity(x, t[0] / 1000, weights, points, jnp.array(r))

    start = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None]
    process = FlowProcess(PATH, "v", bounds=None)
    sampler = SamplerConfig("heun", 500)
    drawn = np.asarray(sample(process, denoise, None, (1,), sampler, x_init=jnp.asarray(start)))
    assert np.mean(drawn < 0) == pytest.approx(0.3, abs=0.004)
    np.testing.assert_allclose(np.abs(drawn), 1, atol=0.02)


def gaussian(x, t, keep, mean, std, slope, num_steps=1000):
    """E[u | x_t] for x0 ~ N(mean, std^2) and r = slope (x0 - mean)."""
    time = t[0] / num_steps
    factor = (1 - time) * (1 + time * slope)
    share = (x - (1 - time) * mean) / (factor**2 * std**2 + time**2)
    residual = factor * std**2 * share
    return time * share - mean - residual + (1 - 2 * time) * slope * residual


def test_whitening_keeps_in_four_steps_what_no_relation_loses():
    """Of Gaussians the spread that Euler returns, over the true one."""
    mean, stds = 0.4, np.array([0.05, 0.1, 0.2, 0.5, 1.0], np.float32)
    slopes = whitened(jnp.zeros((1, 1, 5)), jnp.asarray(stds)[None, None]).slope[0, 0]
    process = FlowProcess(PATH, "v", bounds=None)

    def spread(slope):
        denoise = functools.partial(gaussian, mean=mean, std=stds, slope=slope)
        x = jnp.stack([jnp.ones(5), jnp.zeros(5)])
        ends = sample(process, denoise, None, (5,), SamplerConfig("euler", 4), x_init=x)
        np.testing.assert_allclose(ends[1], mean, atol=1e-4)
        return np.asarray(ends[0] - ends[1]) / stds

    plain, white = spread(0.0), spread(slopes)
    assert np.all(plain < 0.75)
    assert np.all(np.abs(white - 1) < 0.2) and np.all(np.abs(white - 1) < 0.6 * (1 - plain))


def test_the_best_slope_makes_a_straight_path():
    """Theory: (1 + t rho)^2 = 1 + 2 t / ((1 - t) s) makes the spread (1 - t) s + t.

    So one Euler step is exact of a slope that depends on t. None that does not can be, see below.
    """
    std, time = 0.2, np.linspace(0.01, 0.99, 50)
    best = (np.sqrt(1 + 2 * time / ((1 - time) * std)) - 1) / time
    spread = np.sqrt(((1 - time) * (1 + time * best) * std) ** 2 + time**2)
    np.testing.assert_allclose(spread, (1 - time) * std + time, rtol=1e-12)


@pytest.mark.parametrize("r", [(0.0, 0.0), (0.9, -0.9), (3.0, 3.0)])
def test_one_euler_step_ends_at_one_point(r):
    """At t = 1 the state is noise alone: all of it is led to E[x0 + r], here of two points."""
    weights, points = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.0])

    def denoise(x, t, keep):
        return velocity(x, t[0] / 1000, weights, points, jnp.array(r))

    process, one = FlowProcess(PATH, "v", bounds=None), SamplerConfig("euler", 1)
    start = jnp.array([[1.5], [-0.5]])
    ends = sample(process, denoise, None, (1,), one, x_init=start)
    expected = 0.3 * (-1 + r[0]) + 0.7 * (1 + r[1])
    np.testing.assert_allclose(ends, expected, atol=1e-5)


def energy(slope, mean, std):
    """The kinetic energy of the flow of N(mean, std^2) and r = slope (x0 - mean), by scipy.

    It is the integral of (d mean / dt)^2 + (d spread / dt)^2, as the flow of a Gaussian is linear.
    """

    def at(t):
        factor, change = (1 - t) * (1 + t * slope), slope - 1 - 2 * t * slope
        spread = np.sqrt(factor**2 * std**2 + t**2)
        return mean**2 + ((factor * change * std**2 + t) / spread) ** 2

    return integrate.quad(at, 0, 1, limit=200)[0]


def loss_of_gaussian(slope, mean, std, count=200_000):
    """Returns flow_loss and its metrics for r = slope (x0 - mean) and the exact denoiser."""
    from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
    from contextdiff_jax.tasks.flow_objective import flow_loss
    from contextdiff_jax.tasks.objective import Draw

    relation = Affine(jnp.full((1, 1, 1), slope), jnp.full((1, 1, 1), -slope * mean))
    process = FlowProcess(PATH, "v", None, None, relation)
    known = jax.lax.stop_gradient(slope)  # the denoiser's own numbers are not the relation's

    def denoise(x, t, keep):
        time = t[:, None, None, None]
        return gaussian(x, time[None], keep, mean, std, known)

    x0, noise = jax.random.normal(jax.random.key(0), (2, count, 1, 1, 1))
    t = 1 + jnp.arange(count) % 1000
    draw = Draw(mean + std * x0, t, noise, jnp.ones(count, bool))
    return flow_loss(DiffusionConfig(kind="flow"), process, denoise, draw)


def test_kinetic_energy_is_that_of_the_flow():
    """E|u|^2 - L of random pairs against scipy's integral."""
    mean, std, slope = 0.4, 0.3, 1.5
    _, metrics = loss_of_gaussian(jnp.float32(slope), mean, std)
    expected = energy(slope, mean, std)
    assert float(metrics["kinetic_energy"]) == pytest.approx(expected, rel=0.01)
    # Above the squared distance of Wasserstein.
    assert mean**2 + (1 - std) ** 2 < expected < energy(0.0, mean, std)


@pytest.mark.parametrize("std", [0.1, 0.3, 1.0])
def test_an_affine_relation_descends_the_kinetic_energy(std):
    """The gradient of its slope is that of scipy's integral: it vanishes where that is least."""
    found = optimize.minimize_scalar(energy, bounds=(-0.9, 30), args=(0.4, std), method="bounded")
    gradient = jax.jit(jax.grad(lambda slope: loss_of_gaussian(slope, 0.4, std)[0]))
    size = 0.02 * (energy(0.0, 0.4, std) - found.fun)
    for slope in (0.0, found.x, 2 * found.x):
        nearby = [energy(slope + step, 0.4, std) for step in (-1e-3, 1e-3)]
        expected = (nearby[1] - nearby[0]) / 2e-3
        assert float(gradient(jnp.float32(slope))) == pytest.approx(expected, rel=0.03, abs=size)
        assert slope == found.x or abs(expected) > 2 * size


@pytest.mark.parametrize("std", [0.05, 0.2, 0.5, 2.0])
def test_the_slope_of_whitening_has_nearly_the_least_energy(std):
    """At least 98 % of what the best slope gains is gained by 1.2 std^-0.8."""
    fitted = whitened(jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), std)).slope.item()
    least = optimize.minimize_scalar(energy, bounds=(-0.9, 30), args=(0.0, std), method="bounded")
    plain = energy(0.0, 0.0, std)
    assert plain - energy(fitted, 0.0, std) > 0.98 * (plain - least.fun) > 0


def test_the_papers_relation_is_refused():
    """It is told the time, whether it depends on it or not."""
    with pytest.raises(ValueError, match="relation: must be None on the linear path, .*the time"):
        FlowProcess(PATH, "v", relation=lambda x0, times: (x0,) * len(times))

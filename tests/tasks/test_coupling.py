"""Relation coupling: its divergence, its loss, its gradients, and what it may do to a flow."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from contextdiff_jax.conditions.condition import Given
from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.networks.flow_relations import Coupling
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.loop import sample
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow import Flow
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.flow_objective import flow_loss
from contextdiff_jax.tasks.mean_flow_objective import mean_flow_loss
from contextdiff_jax.tasks.objective import Draw
from tests.fixtures.parameters import drawn

PATH = LinearPath(1000)
CONFIG = FlowConfig(relation="coupling", width=8, beta=3.0)


def test_the_noise_and_its_divergence_are_those_of_torch():
    """z has the mean and deviation that the network says; KL is torch's, a mean over values."""
    torch = pytest.importorskip("torch", reason="the oracle is torch.distributions")
    flow, shape = Flow(CONFIG), (4, 4, 2)
    there = jnp.ones((3, 2), bool)
    given = {"label": Given(there[:, 0], jax.random.normal(jax.random.key(0), (3, 2, 5)), there)}
    params = drawn(flow.init, shape, given)
    x0, noise = jax.random.normal(jax.random.key(1), (2, 3, *shape))
    couple = flow.process(PATH, "v", params, given, None).couple
    z, kl = jax.jit(couple)(x0, noise)
    seen = given["label"].tokens.mean(1)
    mean, log_std = jax.jit(Coupling(8).apply)({"params": params}, x0, seen)
    mean, log_std, z, noise = (np.asarray(each) for each in (mean, log_std, z, noise))
    assert min(np.abs(mean).max(), np.abs(log_std).max()) > 0.1
    np.testing.assert_allclose((z - mean) / np.exp(log_std), noise, rtol=1e-3, atol=1e-3)
    made, standard = (
        torch.distributions.Normal(*map(torch.tensor, moments))
        for moments in ((mean, np.exp(log_std)), (np.zeros(1), np.ones(1)))
    )
    expected = torch.distributions.kl_divergence(made, standard).mean()
    assert float(kl) == pytest.approx(float(expected), rel=1e-4)


def linear(lean, log_std, x0, noise):
    """A coupling of two numbers: z = lean x0 + exp(log_std) noise, and its divergence."""
    mean, std = lean * x0, jnp.exp(log_std)
    return mean + std * noise, 0.5 * jnp.mean(mean**2 + std**2 - 1 - 2 * log_std)


def denoise(weight, x, t, keep):
    """A denoiser of one number; of two times it reads both."""
    told = t if t.ndim == 1 else t[:, 0] + 0.3 * t[:, 1]
    return jnp.tanh(weight * x) + x * told[:, None, None, None] / 999


def a_draw(ends=None):
    x0, noise = jax.random.normal(jax.random.key(2), (2, 4, 3, 3, 1))
    t = jnp.array([90, 500, 600, 910])
    return Draw(x0, t, noise, jnp.ones(4, bool), ends)


NUMBERS = {"weight": jnp.float32(0.7), "lean": jnp.float32(0.4), "log_std": jnp.float32(-0.3)}


def test_network_and_coupling_descend_the_error_and_beta_times_the_divergence():
    """Against the formula of docs/flow.md, by autodiff of it."""
    draw, beta = a_draw(), CONFIG.beta
    config = DiffusionConfig(kind="flow", flow=CONFIG)

    def ours(numbers):
        couple = functools.partial(linear, numbers["lean"], numbers["log_std"])
        process = FlowProcess(PATH, "v", bounds=None, couple=couple)
        return flow_loss(config, process, functools.partial(denoise, numbers["weight"]), draw)

    def formula(numbers):
        z, kl = linear(numbers["lean"], numbers["log_std"], draw.x0, draw.noise)
        time = (draw.t / 1000)[:, None, None, None]
        x_t = (1 - time) * draw.x0 + time * z
        missed = denoise(numbers["weight"], x_t, draw.t, None) - (z - draw.x0)
        return jnp.mean(missed**2) + beta * kl

    (loss, metrics), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(NUMBERS)
    expected, slopes = jax.jit(jax.value_and_grad(formula))(NUMBERS)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss - metrics["error"]) == pytest.approx(beta * float(metrics["coupling_kl"]))
    for name, slope in slopes.items():
        assert abs(slope) > 1e-2
        assert float(gradient[name]) == pytest.approx(float(slope), rel=1e-4)


def test_of_steps_a_coupling_learns_its_divergence_alone():
    """MeanFlow: where s < t no error reaches the coupling; where s = t it does."""
    config = DiffusionConfig(kind="flow", objective="mean_flow", flow=CONFIG)

    def gradient(ends):
        def loss(numbers):
            couple = functools.partial(linear, numbers["lean"], numbers["log_std"])
            process = FlowProcess(PATH, "v", bounds=None, couple=couple, mean_velocities=True)
            network = functools.partial(denoise, numbers["weight"])
            return mean_flow_loss(config, process, network, a_draw(ends))[0]

        return jax.jit(jax.grad(loss))(NUMBERS)

    def divergence(lean, log_std):
        return CONFIG.beta * linear(lean, log_std, a_draw().x0, 0.0)[1]

    own = jax.grad(divergence, (0, 1))(NUMBERS["lean"], NUMBERS["log_std"])
    steps, velocities = (gradient(a_draw().t - back) for back in (60, 0))
    for name, expected in zip(("lean", "log_std"), own, strict=True):
        assert float(steps[name]) == pytest.approx(float(expected), rel=1e-4)
        assert abs(velocities[name] - expected) > 1e-2
    assert abs(steps["weight"]) > 1e-3


@pytest.mark.parametrize(
    ("lean", "calls", "kept"),
    [(0.0, 200, 1.0), (1.0, 200, 1.0), (2.0, 2, 1.0), (2.0, 1, 1.0), (0.0, 1, 0.0)],
)
def test_a_coupling_keeps_the_data_and_a_full_one_is_exact_in_one_step(lean, calls, kept):
    """x0 ~ N(0, 0.5^2), z = lean x0 + std eps ~ N(0, 1), the best linear velocity at each time.

    With lean = 1 / 0.5 no path crosses another, so one Euler step is exact (optimal transport).
    Without a coupling it ends at the mean. kept: of the deviation.
    """
    spread, count = 0.5, 20_000
    places = (np.arange(count) + 0.5) / count
    x0 = spread * np.random.default_rng(0).permutation(stats.norm.ppf(places))
    noise = np.random.default_rng(1).permutation(stats.norm.ppf(places))
    x0, noise = (jnp.asarray(each, jnp.float32)[:, None, None, None] for each in (x0, noise))
    std = np.sqrt(1 - (lean * spread) ** 2)
    process = FlowProcess(
        PATH, "v", bounds=None, couple=lambda x0, noise: (lean * x0 + std * noise, 0.0)
    )

    def velocity(x, t, keep):
        z, _ = process.couple(x0, noise)
        x_t, u, _ = process.between(x0, z, jnp.full(count, t[0], jnp.int32))
        return jnp.sum(x_t * u) / jnp.sum(x_t * x_t) * x

    start = jnp.array([1.0, -2.0])[:, None, None, None]
    plain = dataclasses.replace(process, couple=None)  # sampling knows no coupling
    sampler = SamplerConfig("euler", calls)
    ends = sample(plain, velocity, None, (1, 1, 1), sampler, x_init=start)
    np.testing.assert_allclose(ends.ravel(), kept * spread * start.ravel(), atol=0.02)


def test_a_coupling_without_a_condition_reads_the_picture_alone():
    flow = Flow(CONFIG)
    params = nn.unbox(jax.eval_shape(lambda key: flow.init(key, (4, 4, 3), {}), jax.random.key(0)))
    assert "context" not in params and "conv_in" in params

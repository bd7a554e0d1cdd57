"""Euler, Heun and AB2: orders of convergence, calls of the network, and what they agree with."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.relations import Affine
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.inversion import invert
from contextdiff_jax.sampling.loop import sample
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.sampling.stepper import make_stepper

PATH = LinearPath(2**12)
FLOW = FlowProcess(PATH, "v", bounds=None)
VP = Process(make_schedule("cosine", 1000), "v", bounds=None)
MEAN, STD = 0.3, 0.5


def denoise(x, t, keep):
    """E[u | x_t] of x0 ~ N(MEAN, STD^2): the flow keeps (x - mean_t) / spread_t."""
    time = t[0] / PATH.num_steps
    share = (x - (1 - time) * MEAN) / ((1 - time) ** 2 * STD**2 + time**2)
    return (time - (1 - time) * STD**2) * share - MEAN


def error(name, num_steps, shift=1.0):
    """How far the end is from MEAN + STD z, in float64."""
    process = dataclasses.replace(FLOW, schedule=LinearPath(2**12, shift))

    def shifted(x, t, keep):
        place = t / PATH.num_steps
        return denoise(x, PATH.num_steps * shift * place / (1 + (shift - 1) * place), keep)

    z = jnp.array([[1.5]])
    sampler = SamplerConfig(name, num_steps)
    return abs(float(sample(process, shifted, None, (1,), sampler, x_init=z)[0, 0]) - 0.3 - 0.75)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ab2", 2), ("heun", 2)])
def test_errors_fall_with_the_order(name, order):
    coarse, fine = (error(name, n) for n in (16, 64))
    assert order - 0.2 < np.log2(coarse / fine) / 2 < order + 0.2


def test_ab2_knows_steps_of_different_lengths():
    """Those of a shifted path, against the method of the textbook in float64."""
    place = np.arange(16, -1, -1) / 16
    times = 3 * place / (1 + 2 * place)
    x, before = 1.5, None
    for t, s in itertools.pairwise(times):
        now = float(denoise(x, [t * PATH.num_steps], None))
        extrapolated = now
        if before is not None:
            extrapolated += (s - t) / (2 * before[0]) * (now - before[1])
        x, before = x + (s - t) * extrapolated, (s - t, now)
    assert error("ab2", 16, 3.0) == pytest.approx(abs(x - 1.05), rel=1e-3)


def test_heun_calls_the_network_twice_a_step_and_once_in_the_last():
    stepper = make_stepper(FLOW, SamplerConfig("heun", 4))
    assert stepper.timesteps.tolist() == [4096, 3072, 3072, 2048, 2048, 1024, 1024, 0]
    stopped = make_stepper(FLOW, SamplerConfig("heun", 2, final_timestep=1))
    assert stopped.timesteps.tolist() == [4096, 2048, 2048, 1, 1]


def test_euler_on_a_schedule_is_ddim_and_of_the_flow_too():
    x = jax.random.normal(jax.random.key(0), (2, 3))
    vp = Process(make_schedule("cosine", 1000), "x0", bounds=None)
    for process, model in ((vp, lambda x, t, keep: jnp.tanh(x)), (FLOW, denoise)):
        euler, ddim = (
            np.asarray(sample(process, model, None, (3,), SamplerConfig(name, 7), x_init=x))
            for name in ("euler", "ddim")
        )
        np.testing.assert_allclose(euler, ddim, atol=1e-5)


def test_dpm_solver_is_of_second_order_on_the_flow():
    coarse, fine = (error("dpm_solver++", n) for n in (32, 128))
    assert np.log2(coarse / fine) / 2 > 1.5


def test_inversion_goes_back_where_the_picture_came_from():
    x0 = jnp.array([[0.9], [-0.2]])
    times = SamplerConfig("euler", 512).timesteps(PATH)
    noise = invert(FLOW, denoise, x0, times)
    np.testing.assert_allclose(noise, (x0 - MEAN) / STD, atol=0.01)
    again = sample(FLOW, denoise, None, (1,), SamplerConfig("euler", 512), x_init=noise)
    np.testing.assert_allclose(again, x0, atol=0.01)


def test_guidance_mixes_velocities_within_its_interval_of_times():
    """By hand: v_null + w (v - v_null) at the times of the interval, v alone elsewhere."""

    def model(x, t, keep):
        return jnp.where(keep[:, None], 1.0, 0.25) * x

    sampler = SamplerConfig("euler", 4, guidance_scale=3.0, guidance_low=0.4, guidance_high=0.8)
    drawn = sample(FLOW, model, None, (1,), sampler, x_init=jnp.array([[2.0]]))
    x = 2.0
    for inside in (False, True, True, False):  # t = 1, 0.75, 0.5, 0.25
        x -= 0.25 * (0.25 + 3 * 0.75 if inside else 1.0) * x
    assert float(drawn[0, 0]) == pytest.approx(x, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(["euler", "ab2", "heun", "dpm_solver++"], ["flow", "vp"]), ("plms", "vp")],
)
@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 7), (2, 4), (0, 6)])
def test_no_step_mixes_estimates_across_an_end_of_the_interval(name, kind, first, last):
    """The estimate is 1, of guidance 3: each step goes straight to it, so any order is exact.

    first, last: the steps that are guided.
    """
    process = FLOW if kind == "flow" else Process(make_schedule("linear", 1000), "eps", bounds=None)

    def model(x, t, keep):
        t = t.astype(jnp.int32)
        signal, sigma = (f(t)[:, None] for f in (process.schedule.signal, process.schedule.sigma))
        x0 = jnp.where(keep[:, None], 1.0, 0.0)
        return (x - x0) / sigma if kind == "flow" else (x - signal * x0) / sigma

    sampler = SamplerConfig(name, 8, final_timestep=20, guidance_scale=3.0)
    times = sampler.timesteps(process.schedule)
    signal, sigma = process.schedule.levels(times)
    low, high = process.schedule.guidance_level(times[[last, first]]) * np.array([0.999, 1.001])
    high = min(high, 1.0) if kind == "flow" else high
    sampler = dataclasses.replace(sampler, guidance_low=float(low), guidance_high=float(high))
    drawn = sample(process, model, None, (1,), sampler, x_init=jnp.array([[0.7]]))
    estimates = np.where((np.arange(8) >= first) & (np.arange(8) <= last), 3.0, 1.0)
    x = 0.7
    for i, x0 in enumerate(estimates):
        x = signal[i + 1] * x0 + sigma[i + 1] * (x - signal[i] * x0) / sigma[i]
    assert float(drawn[0, 0]) == pytest.approx(x, abs=1e-4)


def test_a_threshold_limits_x0_and_not_the_landing():
    """r = x0 / 2: x0_hat of the landing 1.4 at t = 1 is 0.93; only of 2 it is limited to 1."""
    relation = Affine(jnp.full((1, 1, 1), 0.5), jnp.zeros((1, 1, 1)))
    process = FlowProcess(PATH, "x0", context=relation)
    sampler = SamplerConfig("euler", 1, threshold="static")
    for landing, expected in ((1.4, 1.4), (2.0, 1.5)):
        drawn = sample(
            process,
            lambda x, t, keep, landing=landing: jnp.full_like(x, landing),
            sample_keys(0, jnp.arange(2)),
            (1, 1, 1),
            sampler,
        )
        np.testing.assert_allclose(drawn, expected, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ancestral_steps_with_an_affine_relation_draw_gaussian_data(eta):
    """x0 ~ N(MEAN, STD^2), r = 2 x0 + 0.4, the landing that of E[x0 | x_t]."""
    relation = Affine(jnp.full((1, 1, 1), 2.0), jnp.full((1, 1, 1), 0.4))
    process = FlowProcess(PATH, "x0", bounds=None, context=relation)

    def landing(x, t, keep):
        t = t[0] / PATH.num_steps
        factor = (1 - t) * (1 + 2 * t)  # of x0 in x_t
        share = STD**2 * factor / ((factor * STD) ** 2 + t**2)
        x0 = MEAN + share * (x - factor * MEAN - t * (1 - t) * 0.4)
        return x0 + t**2 * (2 * x0 + 0.4)

    sampler = SamplerConfig("ddim", 256, eta=eta)
    keys = sample_keys(0, jnp.arange(20_000))
    drawn = np.asarray(sample(process, landing, keys, (1, 1, 1), sampler))
    assert drawn.mean() == pytest.approx(MEAN, abs=0.01)
    assert drawn.std() == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize(
    ("process", "settings", "sentence"),
    [
        (
            Process(PATH, "v", lambda x, times: [x] * len(times)),
            {"name": "ab2"},
            "not with an adap",
        ),
        (FLOW, {"name": "plms"}, "sampler.name = 'plms': not of kind 'flow', take 'ab2'"),
        ("coupled", {"name": "ddpm"}, "sampler.name = 'ddpm': not with a coupling, whose noise"),
        ("coupled", {"name": "ddim", "eta": 0.5}, "sampler.eta = 0.5: not with a coupling"),
        (FLOW, {"name": "mean_flow"}, "name = 'mean_flow': not with a network trained for"),
        (VP, {"name": "mean_flow"}, "sampler.name = 'mean_flow': not of kind 'vp'"),
        (
            dataclasses.replace(FLOW, mean_velocities=True, bounds=(-1.0, 1.0)),
            {"name": "mean_flow", "threshold": "static"},
            "sampler.threshold = 'static': must be 'none' with name 'mean_flow'",
        ),
        (
            dataclasses.replace(FLOW, mean_velocities=True, guided=True),
            {"name": "ab2", "guidance_scale": 3.0},
            "guidance_scale = 3.0: must be 0 or 1, the network has learned guidance",
        ),
        (FLOW, {"guidance_space": "eps"}, "guidance_space = 'eps': must be 'x0' of kind 'flow'"),
        (FLOW, {"guidance_high": 1.5}, r"guidance_high = 1.5: must be a time in \[0, 1\]"),
        (FLOW, {"num_steps": 5000}, r"num_sample = 5000: must be in 1..4096"),
    ],
)
def test_what_a_sampler_cannot_serve_is_refused(process, settings, sentence):
    if process == "coupled":
        process = dataclasses.replace(FLOW, couple=lambda x0, noise: (noise, 0.0))
    with pytest.raises(ValueError, match=sentence):
        sample(process, denoise, None, (1,), SamplerConfig(**settings), x_init=jnp.zeros((1, 1)))

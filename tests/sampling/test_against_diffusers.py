"""Whole runs without a bias, against diffusers' schedulers in float64.

Their t is ours minus 1. Their alpha_bar is replaced by ours, because float32 products of 1000
factors would limit the comparison.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule, sampling_timesteps
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.inversion import invert
from contextdiff_jax.sampling.loop import sample
from contextdiff_jax.sampling.noise import sample_keys, step_noise
from contextdiff_jax.sampling.stepper import make_stepper

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# diffusers itself, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (4, 4, 3)
KEYS = sample_keys(7, jnp.arange(2))
draw = jax.jit(lambda number: step_noise(KEYS, number, SHAPE))
START = draw(0)
THEIRS = {"x0": "sample", "eps": "epsilon", "v": "v_prediction"}


def network(x, t, num_steps, tanh):
    """Any smooth function of x and t; t is ours, a number or (B, 1, 1, 1)."""
    return 0.9 * tanh(1.5 * x - 0.3) + 0.2 * (t / num_steps) * x


def ours(schedule, sampler, kind, x_init=None):
    """Where no noise is added, the start is given: to draw it would be half of what is compiled."""
    if x_init is None and not make_stepper(Process(schedule, kind), sampler).adds_noise:
        x_init = START

    def denoise(x, t, keep):
        return network(x, t[:, None, None, None], schedule.num_steps, jnp.tanh)

    run = jax.jit(
        lambda keys: sample(Process(schedule, kind), denoise, keys, SHAPE, sampler, x_init=x_init)
    )
    return run(KEYS)


def make(scheduler, schedule, kind, **options):
    oracle = scheduler(
        schedule.num_steps,
        trained_betas=(1 - schedule.alpha_bar[1:] / schedule.alpha_bar[:-1]).tolist(),
        prediction_type=THEIRS[kind],
        **options,
    )
    oracle.alphas_cumprod = torch.tensor(schedule.alpha_bar[1:])
    if hasattr(oracle, "one"):
        oracle.one = torch.tensor(1.0, dtype=torch.float64)
    return oracle


def run(oracle, schedule, x, step_options=lambda number: {}):
    x = torch.tensor(np.asarray(x), dtype=torch.float64)
    for number, t in enumerate(oracle.timesteps):
        output = network(x, float(t) + 1, schedule.num_steps, torch.tanh)
        x = oracle.step(output, t, x, **step_options(number)).prev_sample
    return x.numpy()


def noise(number):
    """Our noise of their step `number`, counted from 0."""
    return torch.tensor(np.asarray(draw(number + 1)), dtype=torch.float64)


def assert_close(a, b):
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "num_steps", "spacing"),
    [
        ("cosine", "x0", 1000, "trailing"),
        ("scaled_linear", "eps", 1000, "trailing"),
        ("linear", "x0", 50, "trailing"),
        ("linear", "v", 30, "leading"),
        ("scaled_linear", "eps", 7, "linspace"),
    ],
)
def test_ddpm(name, kind, num_steps, spacing, monkeypatch):
    schedule = make_schedule(name, 1000)
    oracle = make(
        diffusers.DDPMScheduler, schedule, kind, clip_sample=False, timestep_spacing=spacing
    )
    oracle.set_timesteps(num_steps)
    drawn = iter(range(num_steps))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: noise(next(drawn))
    )
    theirs = run(oracle, schedule, START)
    # diffusers adds no noise at its t = 0, our s = 0; leading has its last step there as well.
    sampler = SamplerConfig("ddpm", num_steps, spacing)
    assert_close(ours(schedule, sampler, kind), theirs)


@pytest.mark.parametrize(
    ("name", "kind", "eta", "num_steps", "spacing"),
    [
        ("cosine", "x0", 0.0, 50, "trailing"),
        ("linear", "x0", 0.6, 20, "leading"),
        ("linear", "v", 0.6, 50, "trailing"),
        ("scaled_linear", "eps", 0.0, 20, "leading"),
        ("scaled_linear", "eps", 0.6, 50, "trailing"),
    ],
)
def test_ddim(name, kind, eta, num_steps, spacing):
    schedule = make_schedule(name, 1000)
    oracle = make(
        diffusers.DDIMScheduler,
        schedule,
        kind,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
    )
    oracle.set_timesteps(num_steps)
    theirs = run(
        oracle,
        schedule,
        START,
        lambda number: {"eta": eta, "variance_noise": noise(number) if eta else None},
    )
    assert_close(ours(schedule, SamplerConfig("ddim", num_steps, spacing, eta=eta), kind), theirs)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_ddim_as_stable_diffusion_has_it(kind):
    schedule = make_schedule("scaled_linear", 1000)
    oracle = make(diffusers.DDIMScheduler, schedule, kind, clip_sample=False, steps_offset=1)
    oracle.final_alpha_cumprod = oracle.alphas_cumprod[0]  # set_alpha_to_one=False
    oracle.set_timesteps(20)
    theirs = run(oracle, schedule, START)
    sampler = SamplerConfig("ddim", 20, "leading", offset=1, final_timestep=1)
    assert_close(ours(schedule, sampler, kind), theirs)


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 50])
def test_plms_as_stable_diffusion_has_it(kind, num_steps):
    schedule = make_schedule("scaled_linear", 1000)
    oracle = make(diffusers.PNDMScheduler, schedule, kind, skip_prk_steps=True, steps_offset=1)
    oracle.final_alpha_cumprod = oracle.alphas_cumprod[0]  # set_alpha_to_one=False
    oracle.set_timesteps(num_steps)
    assert len(oracle.timesteps) == num_steps + (num_steps > 1)
    theirs = run(oracle, schedule, START)
    sampler = SamplerConfig("plms", num_steps, "leading", offset=1, final_timestep=1)
    stepper = make_stepper(Process(schedule, kind), sampler)
    assert (stepper.timesteps[:-1] - 1).tolist() == oracle.timesteps.tolist()
    assert_close(ours(schedule, sampler, kind), theirs)


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_ddim_with_a_threshold(threshold):
    schedule = make_schedule("linear", 1000)
    options = (
        {"clip_sample": True}
        if threshold == "static"
        else {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5}
    )
    oracle = make(diffusers.DDIMScheduler, schedule, "eps", timestep_spacing="trailing", **options)
    oracle.set_timesteps(20)
    theirs = run(oracle, schedule, START, lambda _: {"use_clipped_model_output": True})
    sampler = SamplerConfig(
        "ddim", 20, threshold=threshold, max_threshold=1.5 if threshold == "dynamic" else None
    )
    assert_close(ours(schedule, sampler, "eps"), theirs)


@pytest.mark.parametrize(
    ("name", "kind", "num_steps", "spacing", "final"),
    [
        ("cosine", "x0", 1, "trailing", 0),
        ("cosine", "x0", 10, "trailing", 0),
        ("linear", "v", 50, "trailing", 0),
        ("scaled_linear", "eps", 20, "linspace", 0),
        ("linear", "x0", 10, "trailing", 1),
        ("scaled_linear", "eps", 20, "trailing", 1),
    ],
)
def test_dpm_solver(name, kind, num_steps, spacing, final):
    schedule = make_schedule(name, 1000)
    oracle = make(
        diffusers.DPMSolverMultistepScheduler,
        schedule,
        kind,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        final_sigmas_type="sigma_min" if final else "zero",
    )
    times = sampling_timesteps(1000, num_steps, spacing, final=final)
    oracle.set_timesteps(timesteps=(times[:-1] - 1).tolist())
    # It casts the state to float32 in each step, and its sigmas.
    theirs = run(oracle, schedule, START)
    sampler = SamplerConfig("dpm_solver++", num_steps, spacing, final_timestep=final)
    assert_close(ours(schedule, sampler, kind), theirs)


@pytest.mark.parametrize("num_steps", [3, 14, 15, 20])
@pytest.mark.parametrize(("spacing", "offset"), [("linspace", 0), ("leading", 1)])
def test_dpm_solver_at_diffusers_own_times(spacing, offset, num_steps):
    schedule = make_schedule("scaled_linear", 1000)
    options = {"timestep_spacing": spacing, "steps_offset": offset}
    oracle = make(diffusers.DPMSolverMultistepScheduler, schedule, "eps", **options)
    oracle.set_timesteps(num_steps)
    theirs = run(oracle, schedule, START)
    sampler = SamplerConfig("dpm_solver++", num_steps, spacing, offset=offset, skip_last=True)
    assert_close(ours(schedule, sampler, "eps"), theirs)


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_dpm_solver_with_a_threshold(threshold):
    """The estimates are thresholded, what is extrapolated from them is not: here up to 1.33."""
    schedule = make_schedule("linear", 1000)
    limit = 1.0 if threshold == "static" else 1.5  # of the dynamic range; 1 leaves plain clipping
    oracle = make(
        diffusers.DPMSolverMultistepScheduler,
        schedule,
        "eps",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        thresholding=True,
        sample_max_value=limit,
    )
    times = sampling_timesteps(1000, 12, "trailing", final=0)
    oracle.set_timesteps(timesteps=(times[:-1] - 1).tolist())
    theirs = run(oracle, schedule, START)
    sampler = SamplerConfig(
        "dpm_solver++",
        12,
        threshold=threshold,
        max_threshold=limit if threshold == "dynamic" else None,
    )
    assert_close(ours(schedule, sampler, "eps"), theirs)


@pytest.mark.parametrize(
    ("kind", "offset", "final"),
    # From alpha_bar = 1 diffusers divides by zero for an x0-network.
    [("eps", 0, 0), ("eps", 1, 1), ("x0", 1, 1), ("v", 1, 1)],
)
def test_inversion(kind, offset, final):
    schedule = make_schedule("scaled_linear", 1000)
    oracle = make(
        diffusers.DDIMInverseScheduler,
        schedule,
        kind,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=offset,
    )
    oracle.initial_alpha_cumprod = torch.tensor(schedule.alpha_bar[final])
    oracle.set_timesteps(20)
    x0 = np.tanh(START)
    theirs = run(oracle, schedule, x0)
    times = sampling_timesteps(1000, 20, "leading", offset=offset, final=final)

    def denoise(x, t, keep):
        return network(x, t[:, None, None, None], 1000, jnp.tanh)

    assert_close(invert(Process(schedule, kind), denoise, x0, times), theirs)

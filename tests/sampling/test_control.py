"""What rides along a run: its state through the scan, changed predictions, held values."""

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.control import Free
from contextdiff_jax.sampling.loop import sample
from contextdiff_jax.sampling.noise import sample_keys

SCHEDULE = make_schedule("cosine", 100)
PROCESS = Process(SCHEDULE, "x0", lambda x0, times: tuple(0.3 * jnp.tanh(x0) for _ in times))
KEYS = sample_keys(0, jnp.arange(3))
KNOWN = jnp.array([0.5, -0.25])


def denoise(x, t, keep):
    return 0.5 * jnp.tanh(x) + 0.1 * keep[:, None]


class Recorder(Free):
    """Counts calls in its state, and keeps the times that `after` is told."""

    def init(self, x):
        return {"calls": jnp.int32(0), "times": jnp.zeros(6, jnp.int32)}

    def predict(self, denoise, x, t, keep, state):
        return denoise(x, t, keep), state | {"calls": state["calls"] + 1}

    def after(self, x, number, s, state):
        times = state["times"].at[number - 1].set(s)
        # Into the picture, where the run's end shows it.
        x = x.at[:, 0].set(jnp.where(s == 0, 1000.0 * state["calls"], x[:, 0]))
        x = x.at[:, 1].set(jnp.where(s == 0, jnp.sum(times), x[:, 1]))
        return x, state | {"times": times}


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver++"])
@pytest.mark.parametrize("interval", [None, 0.5])
def test_the_state_rides_through_every_step_once(name, interval):
    sampler = SamplerConfig(name, 6, guidance_scale=2.0, guidance_low=interval)
    drawn = sample(PROCESS, denoise, KEYS, (2,), sampler, control=Recorder())
    times = sampler.timesteps(SCHEDULE)
    np.testing.assert_allclose(drawn, [[6000.0, times[1:].sum()]] * 3)


class Held(Free):
    """Puts the first value of every picture back on the path of a known one, as inpainting does."""

    def after(self, x, number, s, state):
        return x.at[:, 0].set(jnp.sqrt(SCHEDULE.alpha_bar_at(s)) * KNOWN[0]), state


def test_what_is_held_ends_as_it_is_known_and_nothing_rides_along_by_default():
    sampler = SamplerConfig("ddim", 10)
    free = sample(PROCESS, denoise, KEYS, (2,), sampler)
    held = sample(PROCESS, denoise, KEYS, (2,), sampler, control=Held())
    np.testing.assert_array_equal(held[:, 0], np.full(3, KNOWN[0]))
    np.testing.assert_allclose(held[:, 1], free[:, 1], atol=1e-6)
    same = sample(PROCESS, denoise, KEYS, (2,), sampler, control=Free())
    np.testing.assert_array_equal(free, same)


class Negated(Free):
    def predict(self, denoise, x, t, keep, state):
        return -denoise(x, t, keep), state


def test_a_changed_prediction_is_the_one_that_is_used():
    sampler = SamplerConfig("ddim", 10, guidance_scale=2.0)
    negated = sample(PROCESS, denoise, KEYS, (2,), sampler, control=Negated())
    other = sample(PROCESS, lambda *inputs: -denoise(*inputs), KEYS, (2,), sampler)
    np.testing.assert_array_equal(negated, other)

"""Inversion: back and forth on Gaussian data; against diffusers see test_against_diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.inversion import invert
from contextdiff_jax.sampling.loop import sample

COSINE = make_schedule("cosine", 1000)
X0 = jnp.array([[-0.7], [0.0], [1.0]])


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_invert_then_sample_returns_the_input(kind, gaussian_data):
    """The network sees x_s with the time of x_t, so the way back is off by O(1 / n)."""
    data = gaussian_data(COSINE, kind)

    def error(num_steps):
        sampler = SamplerConfig("ddim", num_steps)
        times = sampler.timesteps(COSINE)
        process = Process(COSINE, kind, data.relation)
        noise = invert(process, data.denoise, X0, times)
        back = sample(process, data.denoise, None, (1,), sampler, x_init=noise)
        return float(jnp.max(jnp.abs(back - X0))), noise

    (coarse, _), (fine, noise) = error(100), error(1000)
    assert fine < 6e-3
    assert coarse / fine > 5
    # The probability flow keeps the standardised value.
    np.testing.assert_allclose(noise, (X0 - data.mean) / data.std, atol=0.02)


def test_the_same_estimate_both_ways_returns_the_input_exactly():
    """With a denoiser that always returns one picture, inversion is the exact inverse."""
    picture = jnp.array([[0.3, -0.8]])
    x = picture + jnp.array([[0.05, -0.02]])

    def relation(x0_hat, times):
        return tuple(jnp.sin(3 * x0_hat + 0.01 * t[:, None]) for t in times)

    sampler = SamplerConfig("ddim", 10, final_timestep=1)
    networks = (Process(COSINE, "x0", relation), lambda x, t, keep: picture)
    noise = invert(*networks, x, sampler.timesteps(COSINE))
    back = sample(*networks, None, (2,), sampler, x_init=noise)
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_the_first_step_does_not_count_the_bias_twice(gaussian_data):
    """eps' contains the bias: x_t = sqrt(ab_t) x0 + sqrt(1 - ab_t) eps', whatever the adapter."""
    data = gaussian_data(COSINE, "eps", phi=2.0)
    ours = invert(Process(COSINE, "eps", data.relation), data.denoise, X0, np.array([300, 0]))
    root, sigma = np.sqrt(COSINE.alpha_bar[300]), np.sqrt(1 - COSINE.alpha_bar[300])
    eps = data.denoise(X0, jnp.full(3, 300.0), None)
    np.testing.assert_allclose(ours, root * X0 + sigma * eps, atol=1e-5)


def test_the_path_holds_the_state_at_every_time(gaussian_data):
    data = gaussian_data(COSINE)
    times = SamplerConfig("ddim", 8).timesteps(COSINE)
    networks = (Process(COSINE, "x0", data.relation), data.denoise)
    path = invert(*networks, X0, times, return_path=True)
    assert path.shape == (9, 3, 1)
    np.testing.assert_array_equal(path[-1], X0)
    for i in (0, 3):
        shorter = invert(*networks, X0, times[i:])
        np.testing.assert_allclose(path[i], shorter, atol=1e-6)


def test_the_adapter_sees_the_data_first_and_only_known_times():
    seen = []

    def relation(x0_hat, times):
        jax.debug.callback(lambda *a: seen.append(a), x0_hat, *times, ordered=True)
        return tuple(x0_hat for _ in times)

    def denoise(x, t, keep):
        assert keep.shape == (3,)
        jax.debug.callback(lambda keep: seen.append(bool(np.all(keep))), keep, ordered=True)
        return 0.5 * x

    times = np.array([1000, 500, 0])
    jax.block_until_ready(invert(Process(COSINE, "x0", relation), denoise, X0, times))
    jax.effects_barrier()
    assert seen[0] is True and seen[2] is True
    np.testing.assert_array_equal(seen[1][0], X0)
    assert [float(call[i][0]) for call in (seen[1], seen[3]) for i in (1, 2)] == [1, 500, 500, 1000]


@pytest.mark.parametrize("times", [[0, 500, 1000], [1001, 0], [5, 5, 0], [5, -1]])
def test_bad_times_are_refused(times):
    with pytest.raises(ValueError, match=r"timesteps \[.*\]: must fall strictly within 1000..0"):
        invert(Process(COSINE, "x0"), lambda x, t, keep: x, X0, np.array(times))

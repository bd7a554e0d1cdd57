"""Times of training: spread evenly, and by a law of the share of noise on every schedule."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.diffusion.weights import loss_weight
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.training_times import draw_times

T = 10_000
MIDDLE = {"times": "logit_normal", "time_mean": 0.4, "time_std": 0.8}


def test_times_are_uniform_and_spread_evenly():
    schedule = make_schedule("cosine", 20)
    draw = jax.jit(jax.vmap(lambda key: draw_times(DiffusionConfig(), schedule, key, 8)))
    times = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert times.min() == 1 and times.max() == 20
    # One in every eighth of 1..T, whatever the start.
    assert np.all(np.diff(np.sort(times, axis=1), axis=1) <= 4)
    for place in (0, 7):
        counts = np.bincount(times[:, place] - 1, minlength=20)
        np.testing.assert_allclose(counts, 4000 / 20, atol=5 * np.sqrt(4000 / 20))


@pytest.mark.parametrize("name", ["cosine", "linear", "scaled_linear", "flow"])
def test_times_of_the_middle_have_a_gaussian_logarithm_of_noise_over_signal(name):
    """log(sigma / signal) is the logit of the share of noise: N(0.4, 0.8^2), on every schedule."""
    kind = "flow" if name == "flow" else "vp"
    schedule = LinearPath(T) if kind == "flow" else make_schedule(name, T)
    config = DiffusionConfig(kind=kind, **MIDDLE)
    times = np.asarray(draw_times(config, schedule, jax.random.key(0), 20_000))
    assert times.min() >= 1 and times.max() <= T
    signal, sigma = schedule.levels(times)
    found = stats.kstest(np.log(sigma / signal)[signal > 0], stats.norm(0.4, 0.8).cdf)
    assert found.statistic < 0.005  # of 20,000 places that are spread evenly


def test_a_shift_moves_times_that_are_drawn():
    """As in Esser et al. 2024: the places are drawn before the shift, which then adds log(3)."""
    path, config = LinearPath(T, 3.0), DiffusionConfig(kind="flow", **MIDDLE)
    times = np.asarray(draw_times(config, path, jax.random.key(0), 20_000))
    t = path.levels(times)[1]
    assert np.median(special.logit(t)) == pytest.approx(0.4 + np.log(3), abs=0.01)


@pytest.mark.parametrize("name", ["cosine", "scaled_linear"])
def test_the_papers_process_can_have_the_loss_of_a_flow(name):
    """The density of log(snr) times the weight on x0, against the flow's N(0, 2^2) and 1 / t^2."""
    schedule = make_schedule(name, T)
    config = DiffusionConfig(times="logit_normal", loss_weight="flow")
    times = np.asarray(draw_times(config, schedule, jax.random.key(1), 200_000))
    signal, sigma = schedule.levels(times)
    weight = np.asarray(loss_weight("flow", "x0", schedule, times), float)
    edges = np.linspace(-5, 5, 21)
    found, _ = np.histogram(2 * np.log(signal / sigma), edges, weights=weight / len(times))
    inner = np.linspace(-5, 5, 20_001)
    t = special.expit(-inner / 2)
    density = stats.norm(0, 2).pdf(inner) / t**2 * (inner[1] - inner[0])
    wanted, _ = np.histogram(inner[:-1], edges, weights=density[:-1])
    np.testing.assert_allclose(found, wanted, rtol=0.02)

"""The toy's closed forms against simulated chains and the project's own bound."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import toy_analysis
from benchmarks.toy_analysis import Toy
from contextdiff_jax.diffusion import bound
from contextdiff_jax.diffusion.marginals import Biased, diffuse
from contextdiff_jax.diffusion.schedules import make_schedule

TOY = Toy(make_schedule("cosine", 12), mean=0.3, variance=0.25)
COUNT = 100_000


def simulated(phi, t):
    """x0 and the estimate of it by a fitted line, (N, 1), with their biases at t and t - 1."""
    rng = np.random.default_rng(t)
    x0 = (0.3 + 0.5 * rng.standard_normal((COUNT, 1))).astype(np.float32)
    gains = [float(TOY.schedule.gain(time)) * phi for time in (t, t - 1)]
    x_t = diffuse(TOY.schedule, x0, gains[0] * x0, t, rng.standard_normal((COUNT, 1), np.float32))
    x_t = np.asarray(x_t, np.float64)
    estimate = np.polyval(np.polyfit(x_t[:, 0], x0[:, 0], 1), x_t).astype(np.float32)
    return tuple(Biased(x, *(gain * x for gain in gains)) for x in (x0, estimate))


@pytest.mark.parametrize("phi", [0.0, 2.0])
def test_steps_are_those_of_the_exact_bound(phi):
    expected = TOY.step_kl(phi)
    for t in (2, 5, 12):
        kl = np.asarray(bound.step_kl(TOY.schedule, *simulated(phi, t), jnp.int32(t)))
        assert abs(kl.mean() - expected[t - 2]) < 4 * kl.std() / np.sqrt(COUNT)


@pytest.mark.parametrize("phi", [0.0, 2.0])
def test_ends_are_those_of_the_exact_bound(phi):
    true, _ = simulated(phi, 12)
    prior = np.asarray(bound.prior_kl(TOY.schedule, true.x0, true.bias_t))
    assert abs(prior.mean() - TOY.prior_kl(phi)) < 4 * prior.std() / np.sqrt(COUNT)
    true, estimate = simulated(phi, 1)
    nll = np.asarray(bound.continuous_nll(true.x0, estimate.x0, bound.decoder_std(TOY.schedule)))
    assert abs(nll.mean() - TOY.reconstruction(phi)) < 4 * nll.std() / np.sqrt(COUNT)


def test_command(tmp_path):
    rows = toy_analysis.main([f"--output={tmp_path}", "--num_steps=50", "--count=20000"])
    for row in rows:
        for t, error in row["error"].items():
            fitted, deviation = row["fitted"][t]
            assert abs(fitted - error) < 4 * deviation
        assert row["bound"]["sum"] > TOY.entropy()  # the same data as TOY's
    assert {path.name for path in tmp_path.iterdir()} == {"toy.json", "toy.md", "toy.png"}
    assert len(json.loads((tmp_path / "toy.json").read_text())) == len(rows)


def test_bad_variance_is_named(tmp_path):
    with pytest.raises(ValueError, match="variance = 0.0"):
        toy_analysis.main([f"--output={tmp_path}", "--variance=0"])

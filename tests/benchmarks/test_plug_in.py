"""The two-point example against the same sampler written in NumPy."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from benchmarks import plug_in
from contextdiff_jax.diffusion.schedules import make_schedule


def by_numpy(r, steps, share, count, exact=False):
    """exact: with the posterior mean of r, which a sampler does not know."""
    x = stats.norm.ppf((np.arange(count) + 0.5) / count)
    alpha_bar = make_schedule("cosine", 1000).alpha_bar
    root = np.sqrt(alpha_bar)
    gain = root * (1 - root)
    times = [*np.round(np.arange(1000, 0, -1000 / steps)).astype(int), 0]
    for t, s in zip(times[:-1], times[1:], strict=True):
        log = [-((x - root[t] * v - gain[t] * r(v)) ** 2) / (2 - 2 * alpha_bar[t]) for v in (1, -1)]
        plus = special.expit(log[0] - log[1] + np.log(share / (1 - share)))
        x0 = 2 * plus - 1
        bias = plus * r(1.0) + (1 - plus) * r(-1.0) if exact else r(x0)
        noise = (x - root[t] * x0 - gain[t] * bias) / np.sqrt(1 - alpha_bar[t])
        x = root[s] * x0 + gain[s] * bias + np.sqrt(1 - alpha_bar[s]) * noise
    return np.mean(x > 0)


@pytest.mark.parametrize("slope", [0.0, 1.0, 3.0])
def test_the_sampler_is_numpys(slope):
    schedule = make_schedule("cosine", 1000)
    ours = plug_in.share_at_one(schedule, lambda x: jnp.tanh(slope * x), 0.7, 20, 4001)
    assert ours == pytest.approx(by_numpy(lambda x: np.tanh(slope * x), 20, 0.7, 4001), abs=5e-4)


def test_only_the_plug_in_is_to_blame():
    saturated = lambda x: np.tanh(3 * x)  # noqa: E731
    assert abs(by_numpy(saturated, 200, 0.8, 4001, exact=True) - 0.8) < 2e-3
    assert by_numpy(saturated, 200, 0.8, 4001) > 0.82


def test_command(tmp_path):
    found = plug_in.main([f"--output={tmp_path}", "--steps", "50", "--count=2001"])
    assert json.loads((tmp_path / "plug_in.json").read_text()) == found
    assert abs(found["0.9 x0"]["50"] - 0.8) < 0.005 < found["tanh(10 x0)"]["50"] - 0.8
    assert "| tanh(3 x0) | 0.8" in (tmp_path / "plug_in.md").read_text()
    with pytest.raises(ValueError, match="share = 1.0: must be in"):
        plug_in.main([f"--output={tmp_path}", "--share=1"])

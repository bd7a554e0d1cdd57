"""DPM-Solver++(2M) with a bias: its order against the exact flow of Gaussian data.

Without bias it is compared with diffusers over whole runs in tests/sampling.
"""

import jax
import numpy as np
import pytest

from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.diffusion.solvers import (
    midpoint_estimate,
    solver_coefficients,
    solver_step,
)

SCHEDULE = make_schedule("cosine", 1000)
MEAN, STD, PHI = 0.3, 0.5, 2.0  # of x0, and of the adapter r = PHI x0

SIGNAL = np.sqrt(SCHEDULE.alpha_bar)
GAIN = SIGNAL * (1 - SIGNAL) * PHI
FACTOR = SIGNAL + GAIN  # of x0 in x_t
SPREAD = np.sqrt(FACTOR**2 * STD**2 + 1 - SCHEDULE.alpha_bar)  # of x_t


def error(num_steps: int, bias_of: str) -> float:
    """|x - exact| after a run from t = 880 to 80, in float64, with the bias of one estimate."""
    times = np.linspace(880, 80, num_steps + 1).round().astype(int)
    coefficients = jax.tree.map(
        lambda a: np.asarray(a, np.float64), solver_coefficients(SCHEDULE, times)
    )
    x, previous = 1.0, 0.0
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        now = jax.tree.map(lambda a, i=i: a[i], coefficients)
        x0_hat = MEAN + FACTOR[t] * STD**2 / SPREAD[t] ** 2 * (x - FACTOR[t] * MEAN)
        midpoint = midpoint_estimate(now, x0_hat, previous)
        biased = {"midpoint": midpoint, "x0_hat": x0_hat}[bias_of]
        x = solver_step(now, x, midpoint, GAIN[t] * biased, GAIN[s] * biased)
        previous = x0_hat
    # The probability flow of Gaussian marginals keeps the standardised value.
    first, last = times[0], times[-1]
    exact = FACTOR[last] * MEAN + SPREAD[last] / SPREAD[first] * (1.0 - FACTOR[first] * MEAN)
    return abs(x - exact)


def test_second_order_with_the_bias_of_the_midpoint():
    errors = [error(n, "midpoint") for n in (50, 100, 200)]
    assert errors[0] < 1e-4
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 3.3 < coarse / fine < 5  # 4 in the limit


def test_only_first_order_with_the_bias_of_the_estimate():
    # Why the midpoint's bias is used. If this fails the docstring of `solvers` is wrong.
    assert error(400, "x0_hat") > 10 * error(400, "midpoint")


def test_first_and_last_steps_are_of_first_order():
    def slope(times):
        return np.asarray(solver_coefficients(SCHEDULE, np.array(times)).slope)

    assert (slope(range(1000, -1, -50)) == 0).tolist() == [True] + 18 * [False] + [True]
    assert (slope([1000, 600, 300, 1]) == 0).tolist() == [True, False, True]
    assert (slope(range(1000, 200, -50)) == 0).tolist() == [True] + 14 * [False]


def test_the_last_step_to_zero_returns_the_estimate():
    coefficients = solver_coefficients(SCHEDULE, np.array([1000, 500, 0]))
    last = jax.tree.map(lambda a: a[-1], coefficients)
    assert solver_step(last, 5.0, 0.7, 0.3, 0.0) == pytest.approx(0.7)

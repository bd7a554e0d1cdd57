"""The process: the bias from one call of the relation."""

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule

SCHEDULE = make_schedule("cosine", 10)
X0 = jnp.array([[0.5, -1.0], [2.0, 0.0]])


def test_one_call_serves_all_times():
    calls = []

    def relation(x0_hat, times):
        calls.append([t.tolist() for t in times])
        return tuple(x0_hat * t[:, None] for t in times)

    ours = Process(SCHEDULE, "x0", relation).biases(X0, 4, 0)
    root = np.sqrt(SCHEDULE.alpha_bar[4])
    np.testing.assert_allclose(ours[0], root * (1 - root) * 4 * X0, rtol=1e-6)
    assert np.all(ours[1] == 0)
    assert calls == [[[4.0, 4.0], [1.0, 1.0]]]


def test_times_of_their_own_for_each_example():
    relation = lambda x0_hat, times: tuple(x0_hat * t[:, None] for t in times)  # noqa: E731
    process = Process(SCHEDULE, "x0", relation)
    ours = process.biases(X0, jnp.array([4, 7]), jnp.array([3, 0]), 10)
    for row, (t, s) in enumerate(((4, 3), (7, 0))):
        alone = process.biases(X0[row : row + 1], t, s, 10)
        for mine, theirs in zip(ours, alone, strict=True):
            np.testing.assert_array_equal(mine[row : row + 1], theirs)


def test_without_a_relation_it_is_zero():
    assert Process(SCHEDULE, "x0").biases(X0, 4, 3) == (0.0, 0.0)


def test_a_relation_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"relation returned shapes \[\(2, 1\)\] for 1 times"):
        Process(SCHEDULE, "x0", lambda x0_hat, times: (x0_hat[:, :1],)).biases(X0, 4)


def test_an_unknown_kind_of_prediction_is_refused():
    with pytest.raises(ValueError, match="'epsilon'.*x0, eps, v"):
        Process(SCHEDULE, "epsilon")

"""Prediction kinds: round trips, and the primed targets with a bias in x_t."""

import numpy as np
import pytest

from contextdiff_jax.diffusion import predictions
from contextdiff_jax.diffusion.marginals import diffuse
from contextdiff_jax.diffusion.schedules import make_schedule

KINDS = ["x0", "eps", "v"]
SCHEDULE = make_schedule("scaled_linear", 1000)
T = np.array([1, 2, 250, 700, 1000])
X0, NOISE, BIAS = (
    np.random.default_rng(i).normal(size=(5, 3, 2)).astype(np.float32) for i in range(3)
)
X_T = diffuse(SCHEDULE, X0, BIAS, T, NOISE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_gives_x0_and_eps_back_without_the_bias(kind):
    target = predictions.target(kind, SCHEDULE, X0, X_T, T)
    # At T the division by sqrt(alpha_bar) = 0.07 costs a digit.
    np.testing.assert_allclose(predictions.to_x0(kind, SCHEDULE, target, X_T, T), X0, atol=2e-5)
    sigma = np.sqrt(1 - SCHEDULE.alpha_bar[T])[:, None, None]
    primed = NOISE + BIAS / sigma
    # At t = 1 the division by sigma = 0.03 does, for |primed| up to 100.
    np.testing.assert_allclose(
        predictions.to_eps(kind, SCHEDULE, target, X_T, T), primed, rtol=1e-5, atol=1e-4
    )


def test_v_is_the_usual_velocity():
    signal = np.sqrt(SCHEDULE.alpha_bar[T])[:, None, None]
    sigma = np.sqrt(1 - SCHEDULE.alpha_bar[T])[:, None, None]
    x_t = diffuse(SCHEDULE, X0, 0.0, T, NOISE)
    v = predictions.target("v", SCHEDULE, X0, x_t, T)
    np.testing.assert_allclose(v, signal * NOISE - sigma * X0, atol=1e-4)


def test_unknown_kinds_are_refused():
    for call in (
        lambda: predictions.to_x0("epsilon", SCHEDULE, X0, X_T, T),
        lambda: predictions.to_eps("epsilon", SCHEDULE, X0, X_T, T),
        lambda: predictions.target("epsilon", SCHEDULE, X0, X_T, T),
    ):
        with pytest.raises(ValueError, match="'epsilon'.*x0, eps, v"):
            call()

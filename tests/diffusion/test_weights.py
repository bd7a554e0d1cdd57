"""Loss weights: the loss in any prediction space equals the weighted x0 loss."""

import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.diffusion.weights import VANISHING, loss_weight

ALPHA_BAR = make_schedule("linear", 1000).alpha_bar
T = np.array([1, 2, 100, 500, 900, 1000])
AB = ALPHA_BAR[T]
SNR = AB / (1 - AB)
DEFINITION = {
    "x0": np.ones(6),
    "snr": SNR,
    "snr_plus_1": 1 + SNR,
    "min_snr_5": np.minimum(SNR, 5),
    "min_snr_5_plus_1": 1 + np.minimum(SNR, 5),
    "flow": (1 / (np.sqrt(1 - AB) / (np.sqrt(AB) + np.sqrt(1 - AB)))) ** 2,  # 1 / t^2
    "p2": SNR / (1 + SNR),
}


@pytest.mark.parametrize("name", list(DEFINITION))
@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_loss_in_prediction_space_is_the_weighted_x0_loss(name, kind):
    rng = np.random.default_rng(0)
    x0, x0_hat, x_t = rng.normal(size=(3, 6))
    signal, sigma = np.sqrt(AB), np.sqrt(1 - AB)

    def predicted(x):  # float64, from the definitions of eps' and v'
        eps = (x_t - signal * x) / sigma
        return {"x0": x, "eps": eps, "v": signal * eps - sigma * x}[kind]

    squared_error = (predicted(x0_hat) - predicted(x0)) ** 2
    weight = loss_weight(name, kind, make_schedule("linear", 1000), T)
    assert weight.dtype == jnp.float32
    np.testing.assert_allclose(
        weight * squared_error, DEFINITION[name] * (x0_hat - x0) ** 2, rtol=1e-5
    )


def test_snr_weight_is_exactly_one_on_eps_and_min_snr_at_most_one():
    schedule = make_schedule("cosine", 1000)
    t = np.arange(1, 1001)
    np.testing.assert_array_equal(loss_weight("snr", "eps", schedule, t), np.ones(1000))
    assert float(jnp.max(loss_weight("min_snr_5", "eps", schedule, t))) == 1
    np.testing.assert_allclose(
        loss_weight("snr_plus_1", "v", schedule, t), np.ones(1000), rtol=1e-6
    )
    for name in DEFINITION:
        for kind in ("x0", "eps", "v"):
            assert np.isfinite(loss_weight(name, kind, schedule, t)).all()


def test_the_weights_of_eps_that_stay_finite_without_signal():
    """On eps a weight is that of x0 over snr, which is 1e-9 at the end of this schedule."""
    schedule = make_schedule("cosine", 1000)
    last = {name: float(loss_weight(name, "eps", schedule, np.array(1000))) for name in DEFINITION}
    assert {name for name, weight in last.items() if weight < 1.01} == set(VANISHING)


def test_no_weight_at_zero_and_unknown_names_are_refused():
    schedule = make_schedule("cosine", 10)
    assert np.isnan(loss_weight("x0", "x0", schedule, np.array(0)))
    with pytest.raises(ValueError, match="'minsnr'.*x0, snr, snr_plus_1, min_snr_5, .*p2"):
        loss_weight("minsnr", "x0", schedule, T)
    with pytest.raises(ValueError, match="'epsilon'"):
        loss_weight("snr", "epsilon", schedule, T)

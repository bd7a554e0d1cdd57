"""The linear path: its levels, its shift, and that ancestral steps keep its marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion import steps
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.marginals import Biased


def test_levels_are_the_lines_of_the_definition():
    path, k = LinearPath(1000), np.array([0, 1, 250, 999, 1000])
    np.testing.assert_allclose(path.signal(k), 1 - k / 1000, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(path.sigma(k), k / 1000, rtol=1e-6)
    np.testing.assert_allclose(path.gain(k), k / 1000 * (1 - k / 1000), rtol=1e-6, atol=1e-7)
    assert np.isnan(path.sigma(jnp.array([-1, 1001]))).all()


def test_the_shift_divides_the_signal_to_noise_ratio():
    """Esser et al. 2024: t / (1 - t) becomes `shift` times as large, ends stay."""
    plain, shifted, k = LinearPath(100), LinearPath(100, 3.0), np.arange(1, 100)
    (signal, sigma), (more_signal, more_sigma) = (path.levels(k) for path in (plain, shifted))
    np.testing.assert_allclose(more_sigma / more_signal, 3 * sigma / signal, rtol=1e-12)
    assert [*shifted.levels(0), *shifted.levels(100)] == [1, 0, 0, 1]


def test_an_ancestral_step_of_the_truth_leads_to_the_marginal():
    """x_s given x0 must be N((1 - s) x0, s^2), whatever the noise that the step adds."""
    path, x0, count = LinearPath(10), 0.7, 200_000
    noise, more = jax.random.normal(jax.random.key(0), (2, count))
    x0s = jnp.full(count, x0)
    for t, s in ((10, 6), (6, 3), (3, 0)):
        x_t = path.signal(t) * x0 + path.sigma(t) * noise
        for eta in (0.0, 0.5, 1.0):
            x_s = np.asarray(
                steps.step(path, x_t, Biased(x0s, 0.0, 0.0), t, s, eta=eta, noise=more)
            )
            np.testing.assert_allclose(x_s.mean(), (1 - s / 10) * x0, atol=4e-3)
            np.testing.assert_allclose(x_s.std(), s / 10, rtol=6e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [((1,), "num_steps = 1: must be"), ((10, 0.0), "shift = 0.0: must be")],
)
def test_what_is_no_path_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        LinearPath(*arguments)

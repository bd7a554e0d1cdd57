"""Per-sample noise."""

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.sampling.noise import sample_keys, step_noise


def test_noise_depends_on_seed_index_and_step_only():
    noise = step_noise(sample_keys(5, np.array([2, 9, 2])), 3, (4, 4, 3))
    assert noise.shape == (3, 4, 4, 3) and noise.dtype == jnp.float32
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 9), 3)
    np.testing.assert_array_equal(noise[1], jax.random.normal(key, (4, 4, 3)))
    np.testing.assert_array_equal(noise[0], noise[2])
    alone = step_noise(sample_keys(5, np.array([9])), 3, (4, 4, 3))
    np.testing.assert_array_equal(noise[1], alone[0])


def test_other_seeds_indices_and_steps_are_unrelated():
    keys = sample_keys(0, jnp.arange(2))
    draws = [step_noise(keys, i, (5000,)) for i in (0, 1)]
    draws.append(step_noise(sample_keys(1, jnp.arange(2)), 0, (5000,)))
    correlation = np.corrcoef(np.concatenate(draws)) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)


def test_the_generator_does_not_follow_the_default():
    before = jax.random.key_data(sample_keys(0, jnp.arange(2)))
    with jax.default_prng_impl("rbg"):
        after = jax.random.key_data(sample_keys(0, jnp.arange(2)))
    np.testing.assert_array_equal(before, after)

"""Noise-conditioning augmentation: its direction, its use, its measure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn

from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.super_resolution import augment, downsample


def test_level_zero_is_clean_and_level_one_is_noise(make_task):
    task = make_task("sr")
    low = jnp.full((2, 16, 16, 3), 0.5)
    noise = jax.random.normal(jax.random.key(0), low.shape)
    np.testing.assert_array_equal(augment(task.schedule, low, jnp.zeros(2), noise), low)
    np.testing.assert_allclose(augment(task.schedule, low, jnp.ones(2), noise), noise, atol=0.01)
    half = augment(task.schedule, low, jnp.full(2, 0.5), noise)
    alpha_bar = task.schedule.alpha_bar[25]
    expected = np.sqrt(alpha_bar) * low + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(half, expected, rtol=1e-5, atol=1e-6)


def test_downsampling_agrees_with_torch():
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(images.transpose(0, 3, 1, 2)), size=(8, 8), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(
        downsample(images, 8), theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5
    )


def test_the_result_depends_on_the_low_resolution_image(make_task, awake):
    task = make_task("sr")
    params = awake(task)
    keys = sample_keys(0, jnp.zeros(2, int))
    low = jnp.stack([jnp.full((16, 16, 3), 0.8), jnp.full((16, 16, 3), -0.8)])
    batch = task.conditioning.tokenize(["a red circle"] * 2)
    extras = task.condition_on(low, 0.0, keys)
    images = jax.jit(lambda: task.sample(params, task.frozen, batch, keys, task.sampler, extras))()
    assert np.abs(np.asarray(images[0] - images[1])).max() > 1e-2


def test_each_picture_has_its_own_augmentation_whatever_the_batch(make_task):
    task = make_task("sr")
    low = jnp.zeros((3, 16, 16, 3))
    whole = task.condition_on(low, 0.5, sample_keys(0, jnp.arange(3)))["low_res"]
    alone = task.condition_on(low[:1], 0.5, sample_keys(0, jnp.array([2])))["low_res"]
    np.testing.assert_array_equal(whole[2], alone[0])
    assert np.abs(np.asarray(whole[0] - whole[1])).max() > 0.1


def test_training_draws_levels_and_reports_consistency(make_task, make_batch, awake):
    task = make_task("sr")
    params = awake(task)
    batch = make_batch(task)
    extras = task.extras(jnp.zeros((64, 32, 32, 3)), jax.random.key(0))
    levels = np.asarray(extras["aug_level"])
    assert levels.min() < 0.1 and levels.max() > 0.9
    assert extras["low_res"].shape == (64, 16, 16, 3)
    narrow = dataclasses.replace(task, augmentation=0.2)
    assert narrow.extras(jnp.zeros((64, 32, 32, 3)), jax.random.key(0))["aug_level"].max() <= 0.2
    values = jax.jit(task.diagnose)(params, task.frozen, batch, jax.random.key(0))
    assert {"last_steps_kl", "consistency_rms", "consistency_rms_unrelated"} <= set(values)


def test_consistency_is_of_the_result_with_its_own_input(make_task, make_batch, monkeypatch):
    task = make_task("sr", use_adapter=False)
    params = nn.unbox(task.init(jax.random.key(0)))

    def upsampled(self, params, frozen, batch, keys, sampler, extras):
        low = extras["low_res"]
        return jax.image.resize(low, (*low.shape[:1], 32, 32, 3), "nearest")

    monkeypatch.setattr(type(task), "sample", upsampled)
    values = task.diagnose(params, task.frozen, make_batch(task), jax.random.key(0))
    assert float(values["consistency_rms"]) < 0.5 * float(values["consistency_rms_unrelated"])

"""Noise-conditioning augmentation: its direction, its use, its measure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.conditions.low_resolution import augment, downsample
from contextdiff_jax.data.decode import to_square
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.spaces.pictures import to_uint8
from contextdiff_jax.spaces.pixels import from_uint8
from tests.fixtures.parameters import drawn


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


def test_its_low_resolution_picture_is_as_noisy_as_the_betas_say(make_task):
    task = make_task("sr", schedule="linear", betas=(0.0015, 0.0195))
    np.testing.assert_array_equal(task.conditions[1].schedule.alpha_bar, task.schedule.alpha_bar)


def augmented(task, level):
    """Returns the task with another largest training level of its low-resolution picture."""
    text, low = task.conditions
    low = dataclasses.replace(low, augmentation=level)
    return dataclasses.replace(task, conditions=(text, low))


def as_images(pictures):
    """uint8 -> [-1, 1]."""
    return from_uint8(jnp.asarray(np.stack(pictures)))


def test_downsampling_is_what_the_data_pipeline_does():
    """To the levels of 8 bits, by `to_square` on the large picture (one value in 1000 by one)."""
    generator = np.random.default_rng(0)
    large = 255 * generator.integers(0, 2, (2, 32, 32, 3), dtype=np.uint8)
    small = as_images([to_square(Image.fromarray(picture), 8, "stretch") for picture in large])
    difference = np.abs(downsample(as_images(large), 8) - small) * 127.5
    assert difference.max() < 1.01
    assert (difference > 0.01).mean() < 5e-3


def test_downsampling_starts_from_the_picture_that_is_written():
    """A sampler's result lies between the levels, and beyond black and white."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    written = as_images(to_uint8(images))
    np.testing.assert_array_equal(downsample(images, 8), downsample(written, 8))


@pytest.mark.parametrize(("side", "low", "levels"), [(256, 64, 0.7), (64, 16, 1.5)])
def test_the_condition_of_photographs_is_what_the_base_is_trained_on(
    side, low, levels, shared_data
):
    """The base's pictures come from the whole photograph, the condition from a square of it.

    Hence the remaining difference. The antialiased triangle that the condition once was lay 5.2
    and 7.2 levels off, with 0.64 and 0.62 of the gradients' energy.
    """
    paths = sorted(shared_data("photos").glob("*.jpg"))[::4]
    photos = [Image.open(path).convert("RGB") for path in paths]
    drawn_by_base = as_images([to_square(photo, low, "center_crop") for photo in photos])
    images = as_images([to_square(photo, side, "center_crop") for photo in photos])
    condition = downsample(images, low)
    assert float(jnp.sqrt(jnp.mean((condition - drawn_by_base) ** 2))) * 127.5 < levels

    def energy(pictures):
        return sum(float(jnp.mean(jnp.diff(pictures, axis=axis) ** 2)) for axis in (1, 2))

    assert energy(condition) == pytest.approx(energy(drawn_by_base), rel=0.01)


@pytest.mark.parametrize("where", ["training", "evaluation", "diagnosis"])
def test_training_evaluation_and_diagnosis_see_the_same_condition(
    where, make_task, make_batch, monkeypatch
):
    """And a perfect result is consistent to the last digit."""
    task = make_task("sr", use_adapter=False)
    batch = make_batch(task)
    images = from_uint8(jnp.asarray(batch["image"]))
    expected = as_images(
        [to_square(Image.fromarray(picture), 16, "stretch") for picture in batch["image"]]
    )
    if where == "training":
        clean = augmented(task, 0.0)
        low = clean.of_target(batch, jax.random.key(0))["low_res"]
    elif where == "evaluation":
        low = task.of_target(batch)["low_res"]
    else:
        seen = []

        def perfect(self, params, frozen, batch, keys, sampler):
            seen.append(batch["low_res"])
            return images

        monkeypatch.setattr(type(task), "sample", perfect)
        params = drawn(task.init)
        values = task.diagnose(params, task.frozen, batch, jax.random.key(0))
        assert float(values["consistency_rms"]) == 0
        (low,) = seen
    assert np.sqrt(np.mean((low - expected) ** 2)) * 127.5 < 0.1


@pytest.mark.slow
def test_the_result_depends_on_the_low_resolution_image(make_task, awake):
    task = make_task("sr")
    params = awake(task)
    keys = sample_keys(0, jnp.zeros(2, int))
    low = jnp.stack([jnp.full((16, 16, 3), 0.8), jnp.full((16, 16, 3), -0.8)])
    batch = task.collate(["a red circle"] * 2) | task.of_before(low, 0.0, keys)
    images = jax.jit(lambda: task.sample(params, task.frozen, batch, keys, task.sampler))()
    assert np.abs(np.asarray(images[0] - images[1])).max() > 1e-2


def test_each_picture_has_its_own_augmentation_whatever_the_batch(make_task):
    task = make_task("sr")
    low = jnp.zeros((3, 16, 16, 3))
    whole = task.of_before(low, 0.5, sample_keys(0, jnp.arange(3)))["low_res"]
    alone = task.of_before(low[:1], 0.5, sample_keys(0, jnp.array([2])))["low_res"]
    np.testing.assert_array_equal(whole[2], alone[0])
    assert np.abs(np.asarray(whole[0] - whole[1])).max() > 0.1


@pytest.mark.slow
def test_training_draws_levels_and_reports_consistency(make_task, make_batch, awake):
    task = make_task("sr")
    params = awake(task)
    batch = make_batch(task)
    black = {"image": np.zeros((64, 32, 32, 3), np.uint8)}
    made = task.of_target(black, jax.random.key(0))
    levels = np.asarray(made["aug_level"])
    assert levels.min() < 0.1 and levels.max() > 0.9
    assert made["low_res"].shape == (64, 16, 16, 3)
    narrow = augmented(task, 0.2)
    assert narrow.of_target(black, jax.random.key(0))["aug_level"].max() <= 0.2
    values = jax.jit(task.diagnose)(params, task.frozen, batch, jax.random.key(0))
    assert {"last_steps_kl", "consistency_rms", "consistency_rms_unrelated"} <= set(values)


def test_consistency_is_of_the_result_with_its_own_input(make_task, make_batch, monkeypatch):
    task = make_task("sr", use_adapter=False)
    params = drawn(task.init)

    def upsampled(self, params, frozen, batch, keys, sampler):
        low = batch["low_res"]
        return jax.image.resize(low, (*low.shape[:1], 32, 32, 3), "nearest")

    monkeypatch.setattr(type(task), "sample", upsampled)
    values = task.diagnose(params, task.frozen, make_batch(task), jax.random.key(0))
    assert float(values["consistency_rms"]) < 0.5 * float(values["consistency_rms_unrelated"])

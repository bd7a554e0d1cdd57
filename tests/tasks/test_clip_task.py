"""The loss of tuning on a clip, with a denoiser that knows the clip."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import expand, make_schedule
from contextdiff_jax.tasks.video_editing import ClipTask

SCHEDULE = make_schedule("linear", 1000)
MEAN = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 2)), jnp.float32)
CONTEXT = jnp.ones((1, 3, 5))


class Knowing:
    """Predicts the noise that would have led from the clip's mean to x_t."""

    video = types.SimpleNamespace(frames=4)

    def apply(self, variables, x, t, context, residuals):
        assert context.shape == (4, 3, 5) and t.shape == (4,) and residuals is None
        self.times = t
        signal, sigma = (
            expand(part(t.astype(jnp.int32)), x) for part in (SCHEDULE.signal, SCHEDULE.sigma)
        )
        return (x - signal * MEAN) / sigma


def loss(deviation, kind="eps", key=0):
    task = ClipTask(Knowing(), Process(SCHEDULE, kind, None, None), MEAN, deviation, CONTEXT)
    value, metrics = task.loss({"denoiser": {}}, task.frozen, {}, jax.random.key(key))
    assert metrics == {}
    return float(value), task.denoiser.times


def test_whoever_knows_the_clip_has_no_loss_and_the_time_is_one_for_all_frames():
    drawn = [loss(None, key=key) for key in range(5)]
    assert max(value for value, _ in drawn) < 1e-6
    assert all(np.ptp(times) == 0 for _, times in drawn)
    assert len({float(times[0]) for _, times in drawn}) == 5


def test_latents_are_drawn_from_the_first_stage_anew():
    """x0 = mean + deviation n: the noise that led here from the mean errs by that, times
    signal / sigma."""
    deviation = jnp.full(MEAN.shape, 0.5)
    value, times = loss(deviation)
    t = int(times[0])
    factor = 0.5 * float(SCHEDULE.signal(t)) / float(SCHEDULE.sigma(t))
    assert value == pytest.approx(factor**2, rel=0.3)


def test_what_is_encoded_is_frozen_and_no_batch_is_read():
    task = ClipTask(Knowing(), Process(SCHEDULE, "eps"), MEAN, None, CONTEXT)
    assert set(task.frozen) == {"mean", "context"}
    assert task.batch_shapes(4) == task.collate(["a"]) == {}
    assert dataclasses.is_dataclass(task) and task.preview({}, {}, 0) is None

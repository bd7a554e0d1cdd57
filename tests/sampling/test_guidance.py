"""Guidance as one doubled batch; thresholds against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import expand, make_schedule
from contextdiff_jax.sampling import guidance, loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.noise import sample_keys

SCHEDULE = make_schedule("scaled_linear", 1000)
X = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
CONDITION = np.float32([-1.0, 0.5, 2.0])


def output(x, condition):
    return 0.7 * jnp.tanh(x + expand(condition, x))


def denoise(x, t, keep):
    assert t.shape == keep.shape == x.shape[:1] and t.dtype == jnp.float32
    condition = guidance.match_batch(jnp.asarray(CONDITION), x.shape[0])
    return output(x, jnp.where(keep, condition, 0.0))


def guided(kind="x0", t=700, **options):
    sampler = SamplerConfig(**options)
    return estimate(denoise, t, sampler, kind)


def estimate(network, t, sampler, kind="x0"):
    """The guided x0 of a plain denoiser: nothing rides along."""
    controlled = lambda x, t, keep: (network(x, t, keep), ())  # noqa: E731
    process = Process(SCHEDULE, kind)
    return guidance.guided_x0(process, controlled, X, jnp.asarray(t), sampler)[0]


@pytest.mark.parametrize("space", ["x0", "eps"])
@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_every_example_is_guided_by_its_own_condition(kind, space):
    root, sigma = np.sqrt(SCHEDULE.alpha_bar[700]), np.sqrt(1 - SCHEDULE.alpha_bar[700])

    def x0_of(condition):
        prediction = np.asarray(output(X, condition), np.float64)
        if kind == "eps":
            return (X - sigma * prediction) / root
        return root * X - sigma * prediction if kind == "v" else prediction

    kept, dropped = x0_of(CONDITION), x0_of(0 * CONDITION)
    for scale in (2.5, 0.4, 7.5):
        ours = guided(kind, guidance_scale=scale, guidance_space=space)
        np.testing.assert_allclose(ours, dropped + scale * (kept - dropped), rtol=2e-5, atol=2e-5)


def test_scale_one_is_the_conditional_estimate_and_zero_the_null_one_undoubled():
    batches = []

    def watched(x, t, keep):
        batches.append((x.shape[0], np.asarray(keep).tolist()))
        return denoise(x, t, keep)

    for scale, condition in ((1.0, CONDITION), (0.0, 0 * CONDITION)):
        sampler = SamplerConfig(guidance_scale=scale)
        ours = estimate(watched, 700, sampler)
        np.testing.assert_array_equal(ours, output(X, condition))
    assert batches == [(3, [True] * 3), (3, [False] * 3)]


def test_the_doubled_batch_puts_each_pair_side_by_side():
    seen = []

    def watched(x, t, keep):
        seen.append((x, t, keep))
        return x

    estimate(watched, 9, SamplerConfig(guidance_scale=2.0))
    x, t, keep = seen[0]
    assert len(seen) == 1
    np.testing.assert_array_equal(x, X[[0, 0, 1, 1, 2, 2]])
    assert t.tolist() == [9.0] * 6 and keep.tolist() == [True, False] * 3


def test_match_batch():
    tree = {"text": jnp.arange(6.0).reshape(3, 2), "mask": jnp.array([True, False, True])}
    same = guidance.match_batch(tree, 3)
    np.testing.assert_array_equal(same["text"], tree["text"])
    doubled = guidance.match_batch(tree, 6)
    np.testing.assert_array_equal(doubled["text"], tree["text"][np.array([0, 0, 1, 1, 2, 2])])
    assert doubled["mask"].tolist() == [True, True, False, False, True, True]
    with pytest.raises(ValueError, match="3 examples for a batch of 4"):
        guidance.match_batch(tree, 4)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
@pytest.mark.parametrize("shape", [(3, 16, 16, 3), (2, 5), (2, 1), (2, 3, 4, 4, 3)])
@pytest.mark.parametrize("max_threshold", [None, 1.5])
def test_dynamic_threshold_against_numpy(percentile, shape, max_threshold):
    x0 = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x0 *= np.linspace(0.1, 3, shape[0]).reshape((-1,) + (1,) * (len(shape) - 1))
    expected = []
    for example in x0.astype(np.float64):
        s = max(1.0, np.percentile(np.abs(example), percentile))
        s = s if max_threshold is None else min(s, max_threshold)
        expected.append(np.clip(example, -s, s) / s)
    ours = guidance.dynamic_threshold(x0, percentile, max_threshold)
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-6)


def test_the_percentile_of_a_large_picture_is_exact():
    # With few large values the order statistics around the percentile lie far apart.
    x0 = np.random.default_rng(2).standard_cauchy(size=(1, 256, 256, 3)).astype(np.float32)
    s = np.percentile(np.abs(x0[0]).astype(np.float64), 99.9995)
    expected = np.clip(x0, -s, s) / s
    np.testing.assert_allclose(guidance.dynamic_threshold(x0, 99.9995), expected, rtol=2e-6)


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_the_threshold_follows_guidance(threshold):
    ours = guided(guidance_scale=30.0, threshold=threshold)
    plain = np.asarray(guided(guidance_scale=30.0))
    assert np.abs(plain).max() > 2
    expected = (
        np.clip(plain, -1, 1) if threshold == "static" else guidance.dynamic_threshold(plain, 99.5)
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_the_interval_is_of_noise_levels():
    """Kynkäänniemi et al.'s sigma of a process that keeps the signal: sqrt(1 - ab) / sqrt(ab)."""
    times = np.arange(1, 1001)
    sigma = np.sqrt(1 - SCHEDULE.alpha_bar[1:]) / np.sqrt(SCHEDULE.alpha_bar[1:])
    sampler = SamplerConfig(guidance_scale=2.0, guidance_low=0.3, guidance_high=4.0)
    inside = guidance.inside_interval(SCHEDULE, sampler, times)
    np.testing.assert_array_equal(inside, (sigma >= 0.3) & (sigma <= 4.0))
    assert 0 < inside.sum() < 1000
    assert guidance.inside_interval(SCHEDULE, SamplerConfig(), times).all()


def test_outside_the_interval_the_conditional_estimate_is_taken_undoubled():
    batches = []

    def watched(x, t, keep):
        jax.debug.callback(lambda keep: batches.append(keep.tolist()), keep)
        return denoise(x, t, keep), ()

    sampler = SamplerConfig(guidance_scale=2.5, guidance_low=0.5)
    process = Process(SCHEDULE, "x0")
    for guide, same in ((True, guided(guidance_scale=2.5)), (False, output(X, CONDITION))):
        run = jax.jit(lambda g: guidance.guided_x0(process, watched, X, jnp.int32(700), sampler, g))
        np.testing.assert_allclose(run(guide)[0], same, atol=1e-6)
    jax.effects_barrier()
    assert batches == [[True, False] * 3, [True] * 3]


def test_an_estimate_without_bounds_is_not_cut_off():
    """Latents: static and dynamic thresholds are of pictures; the solver's own limit is off too."""
    schedule = make_schedule("cosine", 20)
    process = Process(schedule, "x0", None, bounds=None)
    denoise = lambda x, t, keep: jnp.full_like(x, 7.0)  # noqa: E731
    keys = sample_keys(0, jnp.arange(2))
    for name in ("ddim", "dpm_solver++"):
        plain = SamplerConfig(name=name, num_steps=4)
        drawn = loop.sample(process, denoise, keys, (2, 2, 3), plain)
        np.testing.assert_allclose(drawn, 7.0, rtol=1e-3)
    for threshold in ("static", "dynamic"):
        cut = SamplerConfig(name="ddim", num_steps=4, threshold=threshold)
        with pytest.raises(ValueError, match="must be 'none', x0 has no bounds here"):
            loop.sample(process, denoise, keys, (2, 2, 3), cut)

"""Schedules against diffusers and float64; timesteps against diffusers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion import schedules
from contextdiff_jax.diffusion.schedules import make_schedule, sampling_timesteps

NAMES = ["cosine", "linear", "scaled_linear"]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("cosine", "squaredcos_cap_v2"),
        ("linear", "linear"),
        ("scaled_linear", "scaled_linear"),
    ],
)
def test_alpha_bar_is_that_of_diffusers(name, theirs):
    diffusers = pytest.importorskip("diffusers")
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
    oracle = diffusers.DDPMScheduler(1000, beta_schedule=theirs, **ends)
    ours = make_schedule(name, 1000).alpha_bar
    assert ours[0] == 1
    # Theirs is a float32 product of 1000 factors.
    np.testing.assert_allclose(ours[1:], oracle.alphas_cumprod.numpy(), rtol=2e-4)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_linear_schedules_keep_their_shape_for_another_length(name):
    short, long = make_schedule(name, 200).alpha_bar, make_schedule(name, 1000).alpha_bar
    np.testing.assert_allclose(np.log(short[100:]), np.log(long[500::5]), rtol=0.03)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_steps", [2, 50, 1000, 4000])
def test_tables_agree_with_float64(name, num_steps):
    schedule = make_schedule(name, num_steps)
    assert schedule.num_steps == num_steps
    t = np.arange(1, num_steps + 1)
    alpha_bar = schedule.alpha_bar[t]
    root = np.sqrt(alpha_bar)
    expected = {
        "alpha_bar_at": alpha_bar,
        "signal": root,
        "variance": 1 - alpha_bar,
        "sigma": np.sqrt(1 - alpha_bar),
        "gain": root * (1 - root),
        "snr": alpha_bar / (1 - alpha_bar),
    }
    for method, values in expected.items():
        ours = getattr(schedule, method)(t)
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, values, rtol=1e-6, err_msg=method)


def test_the_clean_end():
    schedule = make_schedule("cosine", 50)
    assert [float(f(0)) for f in (schedule.signal, schedule.sigma, schedule.gain)] == [1, 0, 0]
    assert np.isinf(schedule.snr(0))


def test_gain_vanishes_at_both_ends_and_peaks_at_a_quarter():
    gain = make_schedule("cosine", 50).gain(np.arange(51))
    assert gain[0] == 0
    assert float(gain[50]) == pytest.approx(0.001, abs=2e-4)
    assert float(gain.max()) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stride", [1, 7, 250])
def test_differences_of_neighbouring_levels_keep_float32_accuracy(name, stride):
    schedule = make_schedule(name, 1000)
    t = np.arange(stride, 1001)
    exact = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[t - stride]
    np.testing.assert_allclose(jax.jit(schedule.beta)(t, t - stride), exact, rtol=1e-6)
    naive = 1 - schedule.alpha_bar_at(t) / schedule.alpha_bar_at(t - stride)
    if stride == 1:
        assert np.max(np.abs(naive / exact - 1)) > 5e-5  # what the two-part logarithm is for


def test_times_may_have_any_shape_and_be_traced():
    schedule = make_schedule("linear", 100)
    t = jnp.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(
        jax.jit(schedule.sigma)(t), schedule.sigma(np.arange(6)).reshape(2, 3)
    )
    assert schedule.gain(7).shape == ()


def test_a_time_outside_is_nan_and_a_float_time_is_refused():
    schedule = make_schedule("linear", 100)
    assert np.isnan(schedule.sigma(np.array([-1, 101]))).all()
    with pytest.raises(TypeError, match="float32.*integers"):
        schedule.sigma(jnp.array([1.0]))


def test_schedules_compare_and_hash_by_value():
    a, b = make_schedule("cosine", 20), make_schedule("cosine", 20)
    assert a == b and hash(a) == hash(b)
    assert a != make_schedule("cosine", 21)
    assert a != schedules.schedule_from_betas("cosine", np.full(20, 0.1))
    calls = []
    double = jax.jit(lambda s: calls.append(1) or s.signal(3) * 2, static_argnums=0)
    double(a), double(b)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="read-only"):
        a.alpha_bar[0] = 2


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="'cosin'.*cosine, linear, scaled_linear"):
        make_schedule("cosin", 10)
    with pytest.raises(ValueError, match="num_steps = 1"):
        make_schedule("cosine", 1)
    with pytest.raises(ValueError, match="must start at 1 and fall"):
        schedules.schedule_from_betas("flat", np.array([0.1, 0.0, 0.1]))
    with pytest.raises(ValueError, match="above 0"):
        schedules.schedule_from_betas("dead", np.array([0.1, 1.0]))


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("num_sample", [2, 7, 20, 48, 50, 999, 1000])
def test_timesteps_are_those_of_diffusers(spacing, num_sample):
    diffusers = pytest.importorskip("diffusers")
    oracle = diffusers.DDPMScheduler(1000, timestep_spacing=spacing)
    oracle.set_timesteps(num_sample)
    ours = sampling_timesteps(1000, num_sample, spacing)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours[:-1], oracle.timesteps.numpy() + 1)
    assert ours[-1] == 0


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("num_train", [2, 10, 1000])
def test_timesteps_fall_strictly_from_the_top(spacing, num_train):
    for num_sample in range(1, num_train + 1, max(1, num_train // 50)):
        times = sampling_timesteps(num_train, num_sample, spacing)
        assert times[0] == num_train and times[-1] == 0 and len(times) == num_sample + 1
        assert np.all(np.diff(times) < 0)


def test_stable_diffusions_timesteps():
    times = sampling_timesteps(1000, 20, "leading", offset=1, final=1)
    np.testing.assert_array_equal(times, [*range(952, 0, -50), 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 0), "num_sample = 0.*1..1000"),
        ((1000, 1001), "num_sample = 1001"),
        ((1000, 10, "even"), "'even'.*trailing, leading, linspace"),
    ],
)
def test_bad_timesteps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling_timesteps(*arguments)


def test_bad_offsets_and_ends_are_refused():
    with pytest.raises(ValueError, match="offset = 1.*leading"):
        sampling_timesteps(1000, 10, "trailing", offset=1)
    with pytest.raises(ValueError, match="final 1.*fall strictly"):
        sampling_timesteps(1000, 10, "leading", final=1)
    with pytest.raises(ValueError, match="1001.*within 1000..0"):
        sampling_timesteps(1000, 1000, "leading", offset=1)


def test_expand():
    assert schedules.expand(jnp.ones(3), jnp.ones((3, 4, 5))).shape == (3, 1, 1)
    assert schedules.expand(2.0, jnp.ones((3, 4))).shape == ()

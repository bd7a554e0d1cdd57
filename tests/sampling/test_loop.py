"""The sampler loop: biased runs, Gaussian data, one program, and its errors."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.loop import sample
from contextdiff_jax.sampling.noise import sample_keys, step_noise

ROOT = pathlib.Path(__file__).resolve().parents[2]
COSINE = make_schedule("cosine", 1000)
SAMPLERS = ["ddpm", "ddim", "dpm_solver++"]


def denoise(x, t, keep):
    return 0.8 * jnp.tanh(1.4 * x + 0.001 * t[:, None])


def relation(x0_hat, times):
    return tuple(jnp.sin(3 * x0_hat + 0.01 * t[:, None]) for t in times)


BIASED = Process(COSINE, "x0", relation)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_biased_run_is_equations_7_and_11(eta):
    """Against the paper's formulas in float64, with an adapter that is not linear."""
    schedule = make_schedule("cosine", 30)
    keys = sample_keys(0, jnp.arange(2))
    ab = schedule.alpha_bar
    gain = np.sqrt(ab) * (1 - np.sqrt(ab))
    x = np.asarray(step_noise(keys, 0, (5,)), np.float64)
    for number, t in enumerate(range(30, 0, -1), start=1):
        s = t - 1
        x0 = 0.8 * np.tanh(1.4 * x + 0.001 * t)
        bias_t, bias_s = (gain[i] * np.sin(3 * x0 + 0.01 * i) for i in (t, s))
        if eta:  # eq. 7: the posterior of eq. 3
            alpha = ab[t] / ab[s]
            mean = (
                np.sqrt(ab[s]) * (1 - alpha) / (1 - ab[t]) * x0
                + np.sqrt(alpha) * (1 - ab[s]) / (1 - ab[t]) * (x - bias_t)
                + bias_s
            )
            deviation = np.sqrt((1 - ab[s]) * (1 - alpha) / (1 - ab[t]))
            x = mean + deviation * np.asarray(step_noise(keys, number, (5,)))
        else:  # eq. 11
            noise = (x - np.sqrt(ab[t]) * x0 - bias_t) / np.sqrt(1 - ab[t])
            x = np.sqrt(ab[s]) * x0 + bias_s + np.sqrt(1 - ab[s]) * noise
    sampler = SamplerConfig("ddpm" if eta else "ddim", 30)
    drawn = sample(Process(schedule, "x0", relation), denoise, keys, (5,), sampler)
    np.testing.assert_allclose(drawn, x, atol=1e-5)


@pytest.mark.parametrize("threshold", ["none", "static"])
def test_a_biased_multistep_run_takes_the_bias_of_the_midpoint(threshold):
    """Against algorithm 2 of DPM-Solver++ on y = x - b in float64, adapter not linear.

    With a threshold the midpoint leaves [-1, 1]; the bias is that of the clipped one.
    """

    def edge(x, t, library=np):
        # Moves in and out of the range, and ends within it: a clipped end would hide the way.
        return (0.6 + 0.03 * t) * library.sin(x + 0.5 * t)

    def clipped(value):
        return value if threshold == "none" else np.clip(value, -1, 1)

    schedule = make_schedule("cosine", 30)
    ab = schedule.alpha_bar
    root, sigma = np.sqrt(ab), np.sqrt(1 - ab)
    with np.errstate(divide="ignore"):
        lam = np.log(root / sigma)
    gain = root * (1 - root)
    keys = sample_keys(0, jnp.arange(2))
    x = np.asarray(step_noise(keys, 0, (5,)), np.float64)
    previous = last_h = None
    furthest = 0.0
    for t in range(30, 0, -2):
        s = t - 2
        x0 = clipped(edge(x, t))
        h = lam[s] - lam[t]
        middle = x0
        if previous is not None and s > 0:
            r = last_h / h
            middle = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        furthest = max(furthest, np.abs(middle).max())
        bias_t, bias_s = (gain[i] * np.sin(3 * clipped(middle) + 0.01 * i) for i in (t, s))
        y = sigma[s] / sigma[t] * (x - bias_t) - root[s] * np.expm1(-h) * middle
        x, previous, last_h = y + bias_s, x0, h
    assert furthest > 1.1  # else clipping would not matter
    sampler = SamplerConfig("dpm_solver++", 15, threshold=threshold)

    def network(x, t, keep):
        return edge(x, t[:, None], jnp)

    drawn = sample(Process(schedule, "x0", relation), network, keys, (5,), sampler)
    np.testing.assert_allclose(drawn, x, atol=1e-5)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
@pytest.mark.parametrize("name", ["ddim", "dpm_solver++"])
def test_deterministic_samplers_reproduce_gaussian_data(name, kind, gaussian_data):
    """The exact flow takes z at T to mean + std z at 0; k_T and the signal at T are below 1e-4.

    DDIM is of first order: measured error 0.78 / n for z = 1. DPM-Solver++ is of second order but
    for its last step, from the time T / n to 0, which is of first order over a small part.
    """
    data = gaussian_data(COSINE, kind)
    z = jnp.array([[-1.5], [0.0], [1.0]])

    def error(num_steps):
        sampler = SamplerConfig(name, num_steps)
        process = Process(COSINE, kind, data.relation)
        drawn = sample(process, data.denoise, None, (1,), sampler, x_init=z)
        return float(jnp.max(jnp.abs(drawn - data.standardised_to_data(z))))

    # An eps-network's x0 at T is rounding divided by 5e-5: its error does not vanish.
    rounding = {"x0": 1e-4, "eps": 2e-3, "v": 1e-4}[kind]
    if name == "ddim":
        coarse, fine = error(50), error(200)
        assert fine < 1.5 * 0.8 / 200 + rounding
        assert 3 < coarse / fine < 5 or kind == "eps"
    else:
        assert error(100) < 1e-3 + rounding


@pytest.mark.slow
def test_ddpm_reproduces_gaussian_data(gaussian_data):
    """Ancestral sampling keeps the mean; its variance lacks Var[x0 | x_t] in each step.

    That is of second order per step, so the deviation's deficit is of first order: about 2 / n.
    """
    data = gaussian_data(COSINE)
    count = 2**17

    def moments(num_steps):
        drawn = sample(
            Process(COSINE, "x0", data.relation),
            data.denoise,
            sample_keys(1, jnp.arange(64)),
            (count // 64,),
            SamplerConfig("ddpm", num_steps),
        )
        return float(drawn.mean()), float(drawn.std())

    statistical = 4 * data.std / np.sqrt(count)
    deficits = []
    for num_steps in (100, 400):
        mean, deviation = moments(num_steps)
        assert mean == pytest.approx(data.mean, abs=statistical)
        deficits.append(data.std - deviation)
    assert 0 < deficits[1] < 2.5 / 400 + statistical
    assert 2 < deficits[0] / deficits[1] < 6


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_relation_is_a_zero_relation(name):
    keys, sampler = sample_keys(0, jnp.arange(2)), SamplerConfig(name, 12)

    def zero(x0_hat, times):
        return tuple(jnp.zeros_like(x0_hat) for _ in times)

    none, zeros, biased = (
        sample(Process(COSINE, "x0", r), denoise, keys, (3,), sampler)
        for r in (None, zero, relation)
    )
    np.testing.assert_allclose(none, zeros, atol=1e-6)
    assert not np.allclose(none, biased)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(name):
    run = jax.jit(lambda keys: sample(BIASED, denoise, keys, (4,), SamplerConfig(name, 10)))
    together = run(sample_keys(3, jnp.arange(5)))
    alone = run(sample_keys(3, jnp.array([3])))
    np.testing.assert_allclose(together[3], alone[0], atol=1e-6)
    reordered = run(sample_keys(3, jnp.array([4, 3, 2, 1, 0])))
    np.testing.assert_array_equal(together[::-1], reordered)
    assert not np.allclose(together[0], together[1])


def test_a_picture_does_not_depend_on_the_devices_and_guidance_moves_no_data():
    program = textwrap.dedent(
        """
        import json, jax, jax.numpy as jnp, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        from contextdiff_jax.diffusion.process import Process
        from contextdiff_jax.diffusion.schedules import make_schedule
        from contextdiff_jax.sampling.config import SamplerConfig
        from contextdiff_jax.sampling.guidance import match_batch
        from contextdiff_jax.sampling.loop import sample
        from contextdiff_jax.sampling.noise import sample_keys

        schedule = make_schedule("cosine", 100)
        sampler = SamplerConfig("ddpm", 5, guidance_scale=3.0)

        def run(keys, offsets):
            def denoise(x, t, keep):
                shift = jnp.where(keep, match_batch(offsets, x.shape[0]), 0.0)
                return 0.5 * jnp.tanh(x + shift[:, None])
            return sample(Process(schedule, "x0"), denoise, keys, (6,), sampler)

        keys, offsets = sample_keys(0, jnp.arange(8)), jnp.linspace(-1, 1, 8)
        one = jax.jit(run)(keys, offsets)
        mesh = jax.make_mesh((4,), ("data",))
        split = NamedSharding(mesh, PartitionSpec("data"))
        many = jax.jit(run, in_shardings=(split, split), out_shardings=split)
        text = many.lower(keys, offsets).compile().as_text()
        print(json.dumps({
            "devices": jax.device_count(),
            "difference": float(np.max(np.abs(many(keys, offsets) - one))),
            "collectives": [c for c in ("all-gather", "all-to-all", "collective-permute",
                                        "all-reduce") if c in text],
        }))
        """
    )
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": str(ROOT),
    }
    child = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    result = json.loads(child.stdout.splitlines()[-1])
    assert result["devices"] == 4
    assert result["difference"] < 1e-6
    assert result["collectives"] == []


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_is_one_program_with_one_copy_of_the_networks(name):
    traces = {"denoise": 0, "relation": 0}

    def counted_denoise(x, t, keep):
        traces["denoise"] += 1
        return denoise(x, t, keep)

    def counted_relation(x0_hat, times):
        traces["relation"] += 1
        assert len(times) == 2
        return relation(x0_hat, times)

    run = jax.jit(
        lambda keys: sample(
            Process(COSINE, "x0", counted_relation),
            counted_denoise,
            keys,
            (4,),
            SamplerConfig(name, 40),
        )
    )
    compiled = run.lower(sample_keys(0, jnp.arange(2))).compile()
    assert traces == {"denoise": 1, "relation": 1}
    assert np.isfinite(compiled(sample_keys(0, jnp.arange(2)))).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_adapter_sees_the_thresholded_estimate_and_times_it_knows(name):
    seen = []

    def wild(x, t, keep):
        return jnp.where(t < 600, 5.0, 0.3)[:, None] + 0 * x  # multistep extrapolates the jump

    def watching(x0_hat, times):
        jax.debug.callback(lambda *a: seen.append(a), x0_hat, *times)
        return tuple(x0_hat for _ in times)

    sampler = SamplerConfig(name, 4, threshold="static", guidance_scale=3.0)
    process, keys = Process(COSINE, "x0", watching), sample_keys(0, jnp.arange(2))
    drawn = sample(process, wild, keys, (3,), sampler)
    jax.block_until_ready(drawn)
    jax.effects_barrier()
    np.testing.assert_allclose(drawn, np.ones((2, 3)), atol=1e-6)
    assert len(seen) == 4
    by_time = {float(t[0]): x0_hat for x0_hat, t, _ in seen}
    assert [float(by_time[t].max()) for t in (500, 250)] == [1, 1]
    assert all(np.allclose(by_time[t], 0.3) for t in (1000, 750))
    asked = {(float(t[0]), float(s[0])) for _, t, s in seen}
    assert asked == {(1000, 750), (750, 500), (500, 250), (250, 1)}
    # Guidance doubles the denoiser's batch of 2, never the adapter's.
    assert seen[0][1].shape == (2,) and seen[0][1].dtype == np.float32


def test_x_init_replaces_the_drawn_state():
    keys = sample_keys(0, jnp.arange(2))
    sampler = SamplerConfig("ddim", 6)
    drawn = sample(BIASED, denoise, keys, (3,), sampler)
    given = sample(BIASED, denoise, None, (3,), sampler, x_init=step_noise(keys, 0, (3,)))
    np.testing.assert_array_equal(drawn, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": SamplerConfig("ddpm", 1001)}, "num_sample = 1001.*1..1000"),
        ({"sampler": SamplerConfig("ddpm", 5, eta=0.5)}, "sampler.eta = 0.5"),
        ({"keys": None}, "keys = None.*ddpm"),
        ({"x_init": jnp.zeros((2, 4))}, r"x_init of shape \(2, 4\)"),
        ({"denoise": lambda x, t, keep: x[:, :1]}, r"denoiser returned shape \(2, 1\)"),
        (
            {"process": Process(COSINE, "x0", lambda x0_hat, times: (x0_hat,))},
            "relation returned shapes.*2 times",
        ),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        "process": BIASED,
        "denoise": denoise,
        "keys": sample_keys(0, jnp.arange(2)),
        "shape": (3,),
        "sampler": SamplerConfig("ddpm", 5),
    }
    with pytest.raises(ValueError, match=message):
        sample(**(arguments | change))


def test_plms_refuses_an_adapter():
    with pytest.raises(ValueError, match="sampler.name = 'plms': not with an adapter"):
        sample(BIASED, denoise, sample_keys(0, jnp.arange(2)), (5,), SamplerConfig("plms", 5))

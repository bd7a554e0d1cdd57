"""The bound as an objective: its value in closed form, its times, whom it trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from contextdiff_jax.conditions.condition import Condition, Given
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.spaces.pixels import Pixels
from contextdiff_jax.tasks import diffusion, objective
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig

T = 20
SCHEDULE = make_schedule("cosine", T)
BOUND = DiffusionConfig(num_steps=T, prediction="x0", objective="bound")


def eq3(t):
    """A, B and the variance of eq. 3 for s = t - 1, in float64 from the paper's formulas."""
    ab, before = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[t - 1]
    beta = 1 - ab / before
    of_x0 = np.sqrt(before) * beta / (1 - ab)
    of_x_t = np.sqrt(ab / before) * (1 - before) / (1 - ab)
    return of_x0, of_x_t, (1 - before) * beta / (1 - ab)


def gain(t):
    root = np.sqrt(SCHEDULE.alpha_bar[t])
    return root * (1 - root)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_the_bound_of_a_constant_estimate_term_by_term(phi):
    """x0_hat = 0.25 whatever x_t: every term is a number, so the loss is, given its times."""
    values = np.random.default_rng(0).integers(0, 256, (T, 2, 2, 3))
    values[0] = 150 + values[0] // 16  # within reach of the decoder, for plain differences
    x0 = values / 127.5 - 1
    relation = (lambda x, times: tuple(phi * x for _ in times)) if phi else None
    noise = np.random.default_rng(1).normal(size=x0.shape).astype(np.float32)
    draw = objective.Draw(jnp.float32(x0), jnp.arange(1, T + 1), noise, jnp.ones(T, bool))
    denoise = lambda x, t, keep: jnp.full_like(x, 0.25)  # noqa: E731
    process = Process(SCHEDULE, "x0", relation)
    loss_of = lambda: objective.bound_loss(BOUND, process, denoise, draw)  # noqa: E731
    loss, metrics = jax.jit(loss_of)()
    assert loss == metrics["bits_per_dim"]

    edges = (x0[0] - 0.25 + np.array([-1, 1])[:, None, None, None] / 255) / np.sqrt(eq3(2)[2])
    nats = -np.sum(np.log(np.diff(stats.norm.cdf(edges), axis=0)))
    for t in range(2, T + 1):
        of_x0, of_x_t, variance = eq3(t)
        factor = of_x0 + phi * (gain(t - 1) - of_x_t * gain(t))
        nats += np.sum((factor * (x0[t - 1] - 0.25)) ** 2) / (2 * variance)
    last = SCHEDULE.alpha_bar[T]
    mean = (np.sqrt(last) + phi * gain(T)) * x0
    prior = 0.5 * np.sum(mean**2 - last - np.log1p(-last), axis=(1, 2, 3))
    # One example at every t: T times the mean is the sum over t.
    expected = (nats + np.mean(prior)) / (12 * np.log(2))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_consistency_by_hand_and_whom_it_teaches():
    """With r(x) = phi x^2 and x0_hat = w: mean k^2 phi^2 (x0^2 - w^2)^2 / (1 - ab)."""
    x0 = np.random.default_rng(0).uniform(-1, 1, (T, 2, 2, 3))
    draw = objective.Draw(
        *(jnp.float32(x0), jnp.arange(1, T + 1), jnp.zeros_like(x0, jnp.float32)),
        jnp.ones(T, bool),
    )
    plain = DiffusionConfig(num_steps=T, prediction="x0")

    def loss_of(config, phi, w):
        relation = lambda x, times: tuple(phi * x**2 for _ in times)  # noqa: E731
        denoise = lambda x, t, keep: jnp.full_like(x, w)  # noqa: E731
        return objective.simple_loss(config, Process(SCHEDULE, "x0", relation), denoise, draw)[0]

    def extra(phi, w):
        with_it = dataclasses.replace(plain, relation_consistency=2.0)
        return loss_of(with_it, phi, w) - loss_of(plain, phi, w)

    factor = np.mean(
        [gain(t) ** 2 / (1 - SCHEDULE.alpha_bar[t]) * (x0[t - 1] ** 2 - 0.3**2) ** 2
         for t in range(1, T + 1)]
    )  # fmt: skip
    value, (by_adapter, by_denoiser) = jax.value_and_grad(extra, (0, 1))(0.5, 0.3)
    assert float(value) == pytest.approx(2 * 0.25 * factor, rel=1e-4)
    assert float(by_adapter) == pytest.approx(2 * factor, rel=1e-4)
    assert float(by_denoiser) == pytest.approx(0, abs=1e-6)


class Scaled:
    """Stands in for either network: the image times a learned number and an odd function of it.

    Its condition's only token is added.
    """

    def apply(self, params, x, t, _=None, adapter_tokens=None, __=None, text=None, **kwargs):
        token = (adapter_tokens if text is None else text)[:, :, :, None]
        own = params["params"]
        return own["scale"] * x + own["bend"] * jnp.sin(t)[0] * x**3 + token


class Learned(Condition):
    """A condition that gives either network a learned number."""

    name = "text"

    def encode(self, params, frozen, batch):
        rows = len(batch["image"])
        mask = jnp.ones((rows, 1), bool)
        tokens, for_adapter = (
            jnp.broadcast_to(params[key], (rows, 1, 1)) for key in ("denoiser", "adapter")
        )
        return Given(jnp.ones(rows, bool), tokens, mask, for_adapter, mask)


class NoEncoder:
    """Stands in for the image encoder."""

    identity = "none"

    def tokens(self, params, images):
        return None


def gradients(name, use_adapter=True):
    config = dataclasses.replace(BOUND, objective=name)
    adapter = Scaled() if use_adapter else None
    parts = (Pixels(4), (Learned(),), Scaled(), adapter, NoEncoder(), SamplerConfig())
    task = DiffusionTask(config, SCHEDULE, *parts)
    networks = {"denoiser": {"scale": 0.5, "bend": 0.1}, "adapter": {"scale": 0.3, "bend": -0.2}}
    networks["conditions"] = {"text": {"denoiser": 0.2, "adapter": 0.1}}
    params = jax.tree.map(jnp.float32, networks)
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8)}
    loss = lambda params: task.loss(params, {"none": None}, batch, jax.random.key(3))  # noqa: E731
    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(params)
    gradient = jax.tree.map(float, gradient)
    of_condition = gradient.pop("conditions")["text"]
    return {key: own | {"token": of_condition[key]} for key, own in gradient.items()}, metrics


def test_what_is_frozen_is_encoded_once_of_two_losses_too():
    calls = []

    class Frozen(Learned):
        def encode(self, params, frozen, batch):
            calls.append(params)
            return super().encode({"denoiser": 0.0, "adapter": 0.0}, frozen, batch)

    config = dataclasses.replace(BOUND, objective="mixed")
    parts = (Pixels(4), (Frozen(),), Scaled(), Scaled(), NoEncoder(), SamplerConfig())
    task = DiffusionTask(config, SCHEDULE, *parts)
    params = {name: {"scale": 0.5, "bend": 0.1} for name in ("denoiser", "adapter")}
    batch = {"image": np.zeros((4, 4, 4, 3), np.uint8)}
    jax.eval_shape(task.loss, params, {"none": None}, batch, jax.random.key(0))
    assert calls == [{}]


def test_mixed_trains_the_denoiser_by_one_and_the_adapter_by_the_other(monkeypatch):
    times = lambda config, schedule, key, count: 2 + 5 * jnp.arange(count)  # noqa: E731
    monkeypatch.setattr(diffusion, "draw_times", times)
    simple, _ = gradients("simple")
    bound, metrics = gradients("bound")
    mixed, more = gradients("mixed")
    assert mixed["denoiser"] == pytest.approx(simple["denoiser"], rel=1e-4)
    assert mixed["adapter"] == pytest.approx(bound["adapter"], rel=1e-4)
    assert mixed["denoiser"] != pytest.approx(bound["denoiser"], rel=0.1)
    assert mixed["adapter"] != pytest.approx(simple["adapter"], rel=0.1)
    assert float(metrics["bits_per_dim"]) == pytest.approx(float(more["bits_per_dim"]), rel=1e-4)
    plain, metrics = gradients("mixed", use_adapter=False)
    assert "relation_rms" not in metrics and "bits_per_dim" not in metrics
    assert plain["denoiser"] == pytest.approx(gradients("simple", False)[0]["denoiser"])

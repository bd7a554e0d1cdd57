"""The step against hand-written NumPy and optax alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from contextdiff_jax.training.optimizer import (
    OptimizerConfig,
    _of_each,
    learning_rate_schedule,
    make_optimizer,
)
from contextdiff_jax.training.random import stream_key
from contextdiff_jax.training.state import new_state
from contextdiff_jax.training.step import make_train_step


class Quadratic:
    """loss = mean over the batch of (p . x - y)^2, without randomness."""

    frozen = {}

    def init(self, key):
        return {"p": jnp.asarray([1.0, -2.0])}

    def loss(self, params, frozen, batch, key):
        return jnp.mean(jnp.square(batch["x"] @ params["p"] - batch["y"])), {}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "x": rng.normal(size=(12, 2)).astype(np.float32),
        "y": rng.normal(size=12).astype(np.float32),
    }


def run(batch, steps, accumulation=1, ema_decay=0.9, clip=0.0):
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(), optax.sgd(0.1)
    )
    state = new_state(Quadratic(), optimizer, jax.random.key(0))
    step = jax.jit(
        make_train_step(
            Quadratic(), optimizer, seed=0, ema_decay=ema_decay, accumulation=accumulation
        )
    )
    for _ in range(steps):
        state, metrics = step(state, {}, batch)
    return state, metrics


def test_gradient_descent_and_moving_average_by_hand(batch):
    state, metrics = run(batch, 3)
    p = np.array([1.0, -2.0])
    ema = p.copy()
    for done in range(3):
        residual = batch["x"] @ p - batch["y"]
        gradient = 2 * batch["x"].T @ residual / len(residual)
        loss = np.mean(residual**2)
        p = p - 0.1 * gradient
        decay = min(0.9, (1 + done) / (10 + done))
        ema = decay * ema + (1 - decay) * p
    np.testing.assert_allclose(state.params["p"], p, rtol=1e-5)
    np.testing.assert_allclose(state.ema["p"], ema, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(gradient), rtol=1e-4)


def test_accumulation_equals_the_whole_batch(batch):
    whole, one = run(batch, 2)
    parts, other = run(batch, 2, accumulation=3)
    np.testing.assert_allclose(parts.params["p"], whole.params["p"], rtol=1e-5)
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)


def test_clipping_bounds_the_update(batch):
    state, _ = run(batch, 1, clip=0.01)
    moved = np.linalg.norm(np.asarray(state.params["p"]) - [1.0, -2.0])
    np.testing.assert_allclose(moved, 0.1 * 0.01, rtol=1e-3)


def test_nothing_changes_from_the_first_failure_on(batch):
    optimizer = optax.adam(0.1)
    step = jax.jit(make_train_step(Quadratic(), optimizer, seed=0, ema_decay=0.9))
    sound, _ = step(new_state(Quadratic(), optimizer, jax.random.key(0)), {}, batch)
    poisoned, _ = step(sound, {}, batch | {"y": np.full(12, np.inf, np.float32)})
    after, metrics = step(poisoned, {}, batch)
    for leaf, expected in zip(
        jax.tree.leaves((after.params, after.ema, after.optimizer, after.step)),
        jax.tree.leaves((sound.params, sound.ema, sound.optimizer, sound.step)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, expected)
    assert int(after.failed_at) == int(metrics["failed_at"]) == 1


def test_streams_differ_by_name_and_step():
    keys = [
        stream_key(0, "a", 0),
        stream_key(0, "a", 1),
        stream_key(0, "b", 0),
        stream_key(1, "a", 0),
    ]
    words = {tuple(np.asarray(jax.random.key_data(key))) for key in keys}
    assert len(words) == 4


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_learning_rate(decay):
    schedule = learning_rate_schedule(
        OptimizerConfig(learning_rate=2.0, warmup_steps=10, decay=decay), 110
    )
    assert float(schedule(0)) == 0.0
    at_once = OptimizerConfig(learning_rate=2.0, warmup_steps=0, decay=decay)
    assert float(learning_rate_schedule(at_once, 110)(0)) == 2.0
    np.testing.assert_allclose(float(schedule(5)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(float(schedule(10)), 2.0, rtol=1e-6)
    expected = 2.0 if decay == "constant" else 2.0 * 0.5 * (1 + np.cos(np.pi * 0.5))
    np.testing.assert_allclose(float(schedule(60)), expected, rtol=1e-5)


def test_gradients_of_one_network_do_not_scale_the_other():
    """By sgd's linearity: each update is the gradient over its own norm, where that exceeds 1."""
    grads = {"denoiser": {"w": jnp.full((4,), 3.0)}, "adapter": jnp.array([300.0, 400.0])}
    clipped = _of_each(optax.clip_by_global_norm(1.0), grads)
    np.testing.assert_allclose(clipped["denoiser"]["w"], np.full(4, 0.5), rtol=1e-6)
    np.testing.assert_allclose(clipped["adapter"], [0.6, 0.8], rtol=1e-6)
    config = OptimizerConfig(warmup_steps=0, b1=0.0, b2=0.0)

    def update(grads):
        optimizer = make_optimizer(config, 9)
        state = optimizer.init(grads)
        for scale in (1.0, 0.5):  # Adam forgets a scale that stays the same
            scaled = jax.tree.map(functools.partial(jnp.multiply, scale), grads)
            updates, state = optimizer.update(scaled, state, grads)
        return updates

    small = update(grads | {"adapter": jnp.array([3e-4, 4e-4])})
    np.testing.assert_array_equal(update(grads)["denoiser"]["w"], small["denoiser"]["w"])


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_adapter_may_learn_at_another_rate(name):
    params = {"denoiser": jnp.ones((3,)), "adapter": {"w": jnp.ones((3,))}}
    params["conditions"] = {"label": {"denoiser": jnp.ones((3,)), "adapter": jnp.ones((3,))}}
    grads = jax.tree.map(lambda x: 0.1 * x, params)

    def updates(**changes):
        optimizer = make_optimizer(OptimizerConfig(name=name, warmup_steps=0, **changes), 9)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    plain, slow = updates(), updates(adapter_rate=0.25)
    np.testing.assert_allclose(slow["adapter"]["w"], 0.25 * plain["adapter"]["w"], rtol=1e-6)
    np.testing.assert_array_equal(slow["denoiser"], plain["denoiser"])
    label, slow_label = plain["conditions"]["label"], slow["conditions"]["label"]
    np.testing.assert_allclose(slow_label["adapter"], 0.25 * label["adapter"], rtol=1e-6)
    np.testing.assert_array_equal(slow_label["denoiser"], label["denoiser"])
    assert float(jnp.abs(plain["adapter"]["w"]).min()) > 0


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_optimizers_descend(name, batch):
    config = OptimizerConfig(name=name, learning_rate=0.05, warmup_steps=1)
    optimizer = make_optimizer(config, 50)
    step = jax.jit(make_train_step(Quadratic(), optimizer, seed=0, ema_decay=0.9))
    state = new_state(Quadratic(), optimizer, jax.random.key(0))
    losses = []
    for _ in range(50):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics["loss"]))
    best = np.linalg.lstsq(batch["x"], batch["y"], rcond=None)[1][0] / 12
    assert losses[-1] - best < 0.1 * (losses[0] - best)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_without_a_gradient_weights_decay_with_the_learning_rate(name, rate):
    """By hand: each step of a warm-up and a cosine leaves 1 - learning rate * weight_decay."""
    config = OptimizerConfig(
        name=name, learning_rate=0.5, warmup_steps=5, decay="cosine", weight_decay=0.25
    )
    optimizer = make_optimizer(dataclasses.replace(config, adapter_rate=rate), 20)
    params = {"denoiser": jnp.array([1.0, -2.0]), "adapter": {"w": jnp.full((128, 128), 3.0)}}
    state, zeros = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(15):
        updates, state = optimizer.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    warm_up = [0.5 * n / 5 for n in range(5)]
    cosine = [0.5 * (1 + np.cos(np.pi * n / 15)) / 2 for n in range(10)]
    left = np.prod([1 - 0.25 * learning for learning in warm_up + cosine])
    left_of_adapter = np.prod([1 - rate * 0.25 * learning for learning in warm_up + cosine])
    np.testing.assert_allclose(params["denoiser"], left * np.array([1.0, -2.0]), rtol=1e-5)
    np.testing.assert_allclose(params["adapter"]["w"], 3.0 * left_of_adapter, rtol=1e-5)

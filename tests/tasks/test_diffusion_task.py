"""The objective: what the adapter sees, what the denoiser sees, what the gradients reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.sampling.noise import sample_keys
from tests.fixtures.parameters import initial

CAPTIONS = ("a red circle", "a blue square", "two green birds", "nothing at all")


def loss_of(task, params, batch, seed=0):
    return jax.jit(task.loss)(params, task.frozen, batch, jax.random.key(seed))


def test_a_fresh_adapter_changes_nothing(make_task, make_batch):
    with_adapter, without = make_task(), make_task(use_adapter=False)
    params = initial(with_adapter.init)
    loss, metrics = loss_of(with_adapter, params, make_batch(with_adapter))
    plain, _ = loss_of(without, {"denoiser": params["denoiser"]}, make_batch(without))
    assert float(loss) == float(plain)
    assert float(metrics["relation_rms"]) == 0.0


def test_gradients_reach_the_adapter_through_x_t(make_task, make_batch, awake):
    task = make_task()
    params = awake(task)
    grads = jax.jit(
        jax.grad(lambda p: task.loss(p, task.frozen, make_batch(task), jax.random.key(0))[0])
    )(params)
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(grads["adapter"])]
    assert sum(norm > 0 for norm in norms) > 0.8 * len(norms)


def test_the_true_denoiser_has_no_loss_however_biased_the_process(
    make_task, make_batch, awake, knows_the_image
):
    task = make_task()
    params = awake(task)
    perfect = dataclasses.replace(task, denoiser=knows_the_image(100 / 127.5 - 1.0, task.schedule))
    batch = make_batch(task) | {"image": np.full((4, 16, 16, 3), 100, np.uint8)}
    loss, metrics = loss_of(perfect, params, batch)
    assert float(metrics["relation_rms"]) > 0.05
    assert float(loss) < 1e-8


def test_uniform_x0_weight_by_hand(make_task, make_batch, knows_the_image):
    task = make_task(prediction="x0")
    task = dataclasses.replace(
        task, denoiser=knows_the_image(0.0, task.schedule, zero=True), adapter=None
    )
    batch = make_batch(task)
    loss, _ = loss_of(task, {"denoiser": {}}, batch)
    x0 = batch["image"].astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(float(loss), np.mean(x0**2), rtol=1e-5)


def test_dropping_hides_the_prompt_from_the_denoiser_only(make_task, make_batch, awake):
    task = make_task(drop_condition=1.0)
    params = awake(task)
    one = make_batch(task)
    other = one | {k: v for k, v in make_batch(task, CAPTIONS[::-1]).items() if k != "image"}
    adapter_sees = [float(loss_of(task, params, b)[1]["relation_rms"]) for b in (one, other)]
    assert adapter_sees[0] != adapter_sees[1]
    without = dataclasses.replace(task, adapter=None)
    denoiser_sees = [float(loss_of(without, params, b)[0]) for b in (one, other)]
    assert denoiser_sees[0] == denoiser_sees[1]
    both = make_task(drop_condition=1.0, drop_both=1.0)
    neither = [float(loss_of(both, params, b)[1]["relation_rms"]) for b in (one, other)]
    assert neither[0] == neither[1]


def test_the_adapter_may_get_the_condition_of_another_picture_or_none(make_task, make_batch, awake):
    task = make_task()
    params = awake(task)
    batch = make_batch(task)
    x0 = task.encoded(task.frozen, batch)
    x0 = jnp.broadcast_to(x0[:1], x0.shape)  # what differs comes from the condition

    def relation(told: str, batch=batch) -> np.ndarray:
        one = dataclasses.replace(
            task, config=dataclasses.replace(task.config, adapter_condition=told)
        )
        process, _ = one.networks(params, task.frozen, batch)
        return np.asarray(process.relation(x0, (jnp.full(4, 50.0),))[0])

    own = relation("own")
    np.testing.assert_allclose(relation("shuffled"), np.roll(own, 1, axis=0), atol=1e-6)
    assert all(np.abs(own[n] - own[n - 1]).max() > 1e-4 for n in range(4))
    empty = {k: v for k, v in make_batch(task, [""] * 4).items() if k != "image"}
    np.testing.assert_allclose(relation("none"), relation("own", batch | empty), atol=1e-6)
    assert np.abs(own - relation("none")).max() > 1e-4


def test_a_scaled_relation_is_another_schedule(make_task, make_batch):
    task = make_task(use_adapter=False, scaled_relation=0.5)
    batch = make_batch(task)
    process, _ = task.networks({"denoiser": {}}, task.frozen, batch)
    x0 = np.asarray(task.encoded(task.frozen, batch), np.float64)
    root = np.sqrt(task.schedule.alpha_bar[20])
    got = process.diffuse(x0, *process.biases(jnp.asarray(x0), 20), 20, np.zeros_like(x0))
    np.testing.assert_allclose(got, root * (1 + 0.5 * (1 - root)) * x0, atol=1e-6)


def test_a_scaled_relation_is_drawn_by_samplers_that_know_its_bias(make_config):
    run = make_config(use_adapter=False, scaled_relation=0.5).runs["base"]
    task, of_run = run.task, {"resolution": run.data.resolution, "use_adapter": False}
    task.check_sampler(task.sampler, "sampler", **of_run)
    with pytest.raises(ValueError, match="sampler.name = 'ab2': not with .* a scaled relation"):
        other = dataclasses.replace(task.sampler, name="ab2")
        task.check_sampler(other, "sampler", **of_run)


def test_an_empty_prompt_is_the_null_condition(make_task, make_batch, awake):
    task = make_task(use_adapter=False)
    params = awake(task)
    keys = sample_keys(0, jnp.arange(2))
    draw = jax.jit(
        lambda batch, sampler: task.sample(params, task.frozen, batch, keys, sampler),
        static_argnums=1,
    )
    empty = draw(task.collate(["", " "]), task.sampler)
    unconditional = dataclasses.replace(task.sampler, guidance_scale=0.0)
    null = draw(task.collate(["a red circle", "a blue square"]), unconditional)
    np.testing.assert_allclose(empty, null, atol=1e-5)
    named = draw(task.collate(["a red circle", "a blue square"]), task.sampler)
    assert np.abs(np.asarray(named) - null).max() > 1e-3


def test_divergence_of_the_last_steps_sees_the_bias(make_task, make_batch, awake):
    task = make_task()
    params = awake(task)
    value = jax.jit(task.diagnose)(params, task.frozen, make_batch(task), jax.random.key(0))
    plain = dataclasses.replace(task, adapter=None)
    other = jax.jit(plain.diagnose)(params, task.frozen, make_batch(task), jax.random.key(0))
    assert np.isfinite(float(value["last_steps_kl"]))
    assert float(value["last_steps_kl"]) != float(other["last_steps_kl"]) > 0


def test_guided_pictures_depend_on_the_prompt_through_the_adapter_too(make_task, awake):
    task = make_task()
    params = awake(task)
    # A denoiser without its text: what differs can only come from the adapter.
    deaf = dataclasses.replace(task.sampler, guidance_scale=0.0)
    keys = sample_keys(0, jnp.zeros(2, int))
    batch = task.collate(["a red circle", "a blue square"])
    images = jax.jit(lambda b: task.sample(params, task.frozen, b, keys, deaf))(batch)
    assert np.abs(np.asarray(images[0] - images[1])).max() > 1e-4

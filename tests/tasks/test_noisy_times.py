"""The paper's process: the presets' losses teach what the condition alone decides, at t = T.

A picture is begun at t = T, where x_t says nothing of it. A loss that hardly weighs that time
leaves place and number to chance: the quickstart's model once ignored where things are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.config import from_config_dict
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.runs.build import diffusion_runs
from contextdiff_jax.tasks import objective
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from tests.fixtures.presets import load_preset

# Not cifar10: it is for bits per dimension, to which the noisy times add little, and keeps snr. Not
# flows: their times weigh by how often they are drawn.
PRESETS = (
    *(("quickstart", "adapter"), ("quickstart", "plain"), ("emoji", ""), ("emoji", "cpu")),
    *(("laion", ""), ("laion", "tiny")),
)
CONFIGS = {":".join(preset): from_config_dict(load_preset(*preset)) for preset in PRESETS}
RUNS = [(preset, name) for preset, config in CONFIGS.items() for name in diffusion_runs(config)]


def share_of_the_last_time(config: DiffusionConfig) -> float:
    """The gradient's size for a text-only mean at t = T, over its largest at any time."""
    schedule = make_schedule(config.schedule, config.num_steps)
    process = Process(schedule, config.prediction)
    x0 = jnp.full((1, 2, 2, 3), 0.8)
    noise = jax.random.normal(jax.random.key(0), x0.shape)

    def size(t: jax.Array) -> jax.Array:
        def loss(mean: jax.Array) -> jax.Array:
            def denoise(x_t, time, keep):  # what stands for the estimate `mean`, whatever x_t
                return process.target(jnp.full_like(x_t, mean), x_t, time.astype(jnp.int32))

            draw = objective.Draw(x0, t[None], noise, jnp.ones(1, bool))
            return objective.simple_loss(config, process, denoise, draw)[0]

        return jnp.abs(jax.grad(loss)(0.3))

    times = np.linspace(schedule.num_steps // 4, schedule.num_steps, 20).astype(np.int32)
    sizes = jax.jit(jax.vmap(size))(times)
    return float(sizes[-1] / jnp.max(sizes))


@pytest.mark.parametrize(("preset", "run"), RUNS)
def test_the_loss_reaches_a_text_only_mean_at_the_last_time(preset, run):
    config = CONFIGS[preset].runs[run].task.diffusion
    assert config.objective == "simple"
    # From a quarter of the process on: below, weights rise without limit where that is wanted.
    assert share_of_the_last_time(config) > 0.05


@pytest.mark.parametrize("name", ["snr", "min_snr_5", "p2"])
def test_weights_that_vanish_are_told_from_those_that_do_not(name):
    assert share_of_the_last_time(DiffusionConfig(prediction="x0", loss_weight=name)) < 1e-4


def test_the_estimate_of_the_test_is_the_mean_itself():
    """For each kind of prediction `target` of a mean at x_t stands for that mean."""
    x_t = jax.random.normal(jax.random.key(1), (1, 2, 2, 3))
    schedule, t = make_schedule("cosine", 100), jnp.array([40])
    for kind in ("x0", "eps", "v"):
        process = Process(schedule, kind)
        predicted = process.target(jnp.full_like(x_t, 0.3), x_t, t)
        np.testing.assert_allclose(process.x0_of(predicted, x_t, t), 0.3, rtol=1e-4)

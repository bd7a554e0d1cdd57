"""Kind flow in every task: with the exact velocity there is no error, and the picture is drawn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import classes, layout
from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.runs.build import LoadedEncoders, locate_in
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.in_context import ContextConfig, InContextConfig
from contextdiff_jax.tasks.task_config import Parts
from tests.fixtures.parameters import drawn

BETA = 2.0
FLOW = FlowConfig(relation="coupling", width=8, beta=BETA)
DIFFUSION = DiffusionConfig(kind="flow", flow=FLOW, num_steps=50)
SAMPLER = SamplerConfig(name="ab2", num_steps=3)


@dataclasses.dataclass(frozen=True, eq=False)
class Exact:
    """Stands in for a denoiser: predicts the path that ends at x0, (B, H, W, C)."""

    x0: Any
    prediction: str = "v"

    def init(self, key, *args, **kwargs):
        return {"params": {}}

    def apply(self, params, x_t, t, **kwargs):
        if self.prediction == "x0":
            return jnp.broadcast_to(self.x0, x_t.shape)
        return (x_t - self.x0) / (t / DIFFUSION.num_steps)[:, None, None, None]


def presets_task(presets, name):
    run = cfg.from_config_dict(presets.get_config(name)).runs["base"]
    return run.task, run.data


def in_context(tiny):
    base = tiny.runs["base"].task
    data = DataConfig(resolution=16, scenes=ScenesConfig(pairs=0.0, context=2))
    parts = {name: getattr(base, name) for name in ("unet", "diffusion", "sampler")}
    return InContextConfig(context=ContextConfig(most=2), **parts), data


def residual(tiny):
    task, data = tiny.runs["sr"].task, tiny.runs["sr"].data
    unet = dataclasses.replace(task.efficient_unet, residual=True)
    return dataclasses.replace(task, efficient_unet=unet), data


TASKS = {
    "text": lambda tiny: (tiny.runs["base"].task, tiny.runs["base"].data),
    "super-resolution": lambda tiny: (tiny.runs["sr"].task, tiny.runs["sr"].data),
    "residual": residual,
    "class": lambda tiny: presets_task(classes, "scenes"),
    "layout": lambda tiny: presets_task(layout, "scenes"),
    "map": lambda tiny: presets_task(layout, "maps"),
    "in context": in_context,
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_learns_and_draws_by_a_flow(name, make_config):
    """The loss that is left is beta times the divergence of a coupling off its beginning."""
    tiny = make_config(use_adapter=False)
    config, data = TASKS[name](tiny)
    prediction = "x0" if name == "residual" else "v"  # all that a residual network predicts
    diffusion = dataclasses.replace(DIFFUSION, prediction=prediction)
    config = dataclasses.replace(config, diffusion=diffusion)
    config.validate("task", data, False)
    encoders = LoadedEncoders(tiny, locate_in("unused"))
    task = config.build(Parts(data, jnp.float32, False, encoders))
    shapes = task.batch_shapes(2)
    batch = {name: np.zeros(each.shape, each.dtype) for name, each in shapes.items()}
    batch["image"] = np.random.default_rng(0).integers(0, 256, shapes["image"].shape, np.uint8)
    x0 = batch["image"] / 127.5 - 1
    task = dataclasses.replace(task, denoiser=Exact(jnp.asarray(x0, jnp.float32), prediction))
    params = drawn(task.init)
    loss, metrics = jax.jit(task.loss)(params, task.frozen, batch, jax.random.key(0))
    assert float(metrics["error"]) < 1e-6 < 1e-2 < float(metrics["coupling_kl"])
    assert float(loss) == pytest.approx(BETA * float(metrics["coupling_kl"]), rel=1e-4)
    asked = batch | jax.jit(task.of_target)(batch)
    keys = sample_keys(0, jnp.arange(2))
    pictures = jax.jit(task.sample, static_argnums=4)(params, task.frozen, asked, keys, SAMPLER)
    np.testing.assert_allclose(pictures, x0, atol=1e-4)


def test_latents_of_a_flow_are_drawn_and_decoded(sd_config):
    """With the exact velocity of the picture's latents; whitening, fitted to pictures, is not."""
    from tests.fixtures.tiny_tasks import build_loaded

    config = sd_config("tiny", use_adapter=False)
    run = cfg.with_task(config.runs["base"], diffusion=DIFFUSION, sampler=SAMPLER)
    task = build_loaded(dataclasses.replace(config, runs={"base": run}), "base")
    params = drawn(task.init)
    shape = task.batch_shapes(2)["image"].shape
    batch = {"image": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}
    batch |= task.collate(["a red circle", ""])
    x0 = jax.jit(task.encoded)(task.frozen, batch)
    task = dataclasses.replace(task, denoiser=Exact(x0))
    sampled = jax.jit(task.sample, static_argnums=4)
    pictures = sampled(params, task.frozen, batch, sample_keys(0, jnp.arange(2)), SAMPLER)
    decoded = jax.jit(lambda x: task.space_in(task.frozen).decode(x))(x0)
    np.testing.assert_allclose(pictures, decoded, atol=1e-3)
    fitted = dataclasses.replace(DIFFUSION, flow=FlowConfig(relation="whitening"))
    wrong = dataclasses.replace(run.task, diffusion=fitted)
    with pytest.raises(ValueError, match="relation = 'whitening': must be another in latents"):
        wrong.validate("task", run.data, False)

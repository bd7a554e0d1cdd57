"""Tasks of objective mean_flow: what they learn and draw, and what does not go with it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import classes
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.low_resolution import LowResolution
from contextdiff_jax.evaluation.evaluation import Evaluation, Settings
from contextdiff_jax.evaluation.scores import plan_sweep
from contextdiff_jax.generation.sampler_flags import asked_samplers
from contextdiff_jax.runs.build import build_task
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.interruption import Watch
from contextdiff_jax.tasks.flow_config import FlowConfig, MeanFlowConfig
from tests.fixtures.parameters import initial
from tests.tasks.small_denoiser import Small, random_batch


class Two(Small):
    """`Small`, told two times."""

    @nn.compact
    def __call__(self, x, t, text, text_mask, keep=None):
        assert t.ndim == 2 and t.shape[1] == 2
        length = self.param("length", nn.initializers.ones, ())
        drawn = super().__call__(x, t[:, 0], text, text_mask, keep)
        return drawn * (1 + length * (t[:, 0] - t[:, 1]) / 10)[:, None, None, None]


def mean_config(relation="none", changes=(), **mean):
    config = cfg.from_config_dict(classes.get_config("scenes_mean_flow"))
    run = config.runs["base"]
    settings = MeanFlowConfig(**mean)
    narrow = {"width": 8} if relation == "coupling" else {}
    flow = FlowConfig(relation=relation, mean=settings, **narrow)
    diffusion = dataclasses.replace(run.task.diffusion, flow=flow)
    run = cfg.with_task(run, diffusion=diffusion, **dict(changes))
    return dataclasses.replace(config, runs={"base": run})


@pytest.mark.parametrize(
    ("relation", "mean"),
    [("none", {"guidance": 2.0}), ("affine", {}), ("coupling", {"power": 0.0})],
)
def test_a_task_learns_of_steps(relation, mean):
    config = mean_config(relation, **mean)
    validate(config)
    task = dataclasses.replace(build_task(config, "base", None), denoiser=Two())
    params = initial(task.init)
    batch = random_batch(task)
    learn = jax.jit(jax.value_and_grad(task.loss, has_aux=True))
    (loss, metrics), gradient = learn(params, {}, batch, jax.random.key(1))
    assert np.isfinite(loss) and {"error", "mean_error", "kinetic_energy"} <= set(metrics)
    assert abs(gradient["denoiser"]["length"]) > 0
    if relation == "affine":
        assert np.abs(gradient["relation"]["slope"]).max() > 0


def test_a_mean_flow_draws_by_steps_and_by_its_velocity():
    task = dataclasses.replace(build_task(mean_config(), "base", None), denoiser=Two())
    params = initial(task.init)
    other = params | {"denoiser": params["denoiser"] | {"length": jnp.float32(0.0)}}
    batch, keys = random_batch(task), sample_keys(0, jnp.arange(4))
    draw = jax.jit(task.sample, static_argnums=4)
    first, second = (draw(each, {}, batch, keys, task.sampler) for each in (params, other))
    assert np.isfinite(first).all() and np.abs(first - second).max() > 1e-3
    single = dataclasses.replace(task.sampler, name="ab2", num_steps=4)
    first, second = (draw(each, {}, batch, keys, single) for each in (params, other))
    np.testing.assert_array_equal(first, second)


def drawing(config, **changes):
    run = config.runs["base"]
    sampler = dataclasses.replace(run.task.sampler, **changes)
    return dataclasses.replace(config, runs={"base": cfg.with_task(run, sampler=sampler)})


def process_change(config, **changes):
    run = config.runs["base"]
    diffusion = dataclasses.replace(run.task.diffusion, **changes)
    return dataclasses.replace(config, runs={"base": cfg.with_task(run, diffusion=diffusion)})


def without_conditions_to_drop(config):
    """The config with a task that is asked for nothing but a low-resolution picture."""
    run = config.runs["base"]
    kind = type("Bare", (type(run.task),), {"conditions": (LowResolution,)})
    fields = {field.name: getattr(run.task, field.name) for field in dataclasses.fields(run.task)}
    return dataclasses.replace(config, runs={"base": dataclasses.replace(run, task=kind(**fields))})


def attending(config, implementation):
    run = config.runs["base"]
    unet = dataclasses.replace(run.task.unet, attention_implementation=implementation)
    return dataclasses.replace(config, runs={"base": cfg.with_task(run, unet=unet)})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: process_change(c, kind="vp"),
            "diffusion.objective = 'mean_flow': must be one of simple, bound, mixed of kind 'vp'",
        ),
        (
            lambda c: process_change(c, objective="bound"),
            "diffusion.objective = 'bound': must be one of simple, mean_flow of kind 'flow'",
        ),
        (
            lambda c: process_change(c, objective="simple"),
            "sampler.name = 'mean_flow': not with a network trained for single times",
        ),
        (
            lambda c: drawing(c, threshold="static"),
            "threshold = 'static': must be 'none' with name",
        ),
        (lambda c: mean_config(share=0.0), "flow.mean.share = 0.0: must be above 0, and below 1"),
        (lambda c: mean_config(share=1.0), "flow.mean.share = 1.0: must be above 0, and below 1"),
        (lambda c: mean_config(power=2.0), r"flow.mean.power = 2.0: must be in \[0, 1\]"),
        (lambda c: mean_config(guidance=0.0), "flow.mean.guidance = 0.0: must be above 0"),
        (
            lambda c: drawing(mean_config(guidance=2.0), guidance_scale=2.0),
            "guidance_scale = 2.0: must be 0 or 1, the network has learned guidance",
        ),
        (
            lambda c: mean_config("coupling", guidance=2.0),
            "flow.mean.guidance = 2.0: must be 1 with relation 'coupling'",
        ),
        (
            lambda c: without_conditions_to_drop(mean_config(guidance=2.0)),
            "base.task.diffusion.flow.mean.guidance = 2.0: must be 1, task 'class_to_image' has no "
            "condition that can be dropped",
        ),
        (
            lambda c: drawing(
                process_change(mean_config(share=0.5), objective="simple"), name="euler"
            ),
            "flow.mean.share = 0.5: must be 0.25, the default, objective 'mean_flow' alone reads",
        ),
        (
            lambda c: attending(c, "auto"),
            "unet.attention_implementation = 'auto': must be 'xla' with objective 'mean_flow'",
        ),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(change(mean_config()))


def test_a_sampler_is_refused_before_anything_is_loaded_or_drawn(tmp_path):
    config = mean_config(guidance=2.0)
    assert asked_samplers(config, ["base"], ["num_steps=4"])["base"].num_steps == 4
    for setting, sentence in (
        ("guidance_scale=2", "sampler of base.guidance_scale = 2.*: must be 0 or 1, the network"),
        ("threshold=static", "sampler of base.threshold = 'static': must be 'none'"),
        ("name=plms", "sampler of base.name = 'plms': not of kind 'flow'"),
        ("num_steps=5000", "sampler of base.num_steps = 5000: .*must be in 1..1000"),
    ):
        with pytest.raises(ValueError, match=sentence):
            asked_samplers(config, ["base"], [setting])
    settings = Settings(output=str(tmp_path), export="read before", guidance=(1.0, 2.0))
    evaluation = Evaluation(settings, Watch())
    evaluation._export = types.SimpleNamespace(stages={"base": None}, config=config), None
    evaluation.check()
    with pytest.raises(ValueError, match="sampler of base.guidance_scale = 2.0: must be 0 or 1"):
        plan_sweep(evaluation)


def test_a_sampler_of_mean_velocities_is_not_of_the_paper_s_process():
    config = cfg.from_config_dict(classes.get_config("test"))
    sampler = dataclasses.replace(
        config.runs["base"].task.sampler, name="mean_flow", threshold="none"
    )
    base = cfg.with_task(config.runs["base"], sampler=sampler)
    changed = dataclasses.replace(config, runs={**config.runs, "base": base}, use_adapter=False)
    with pytest.raises(ValueError, match="sampler.name = 'mean_flow': not of kind 'vp'"):
        validate(changed)

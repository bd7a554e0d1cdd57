"""Counting and timing what the stages of an export cost, with the adapter and with it off."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.evaluation import cost_table
from contextdiff_jax.evaluation.cost_table import StageCost
from contextdiff_jax.evaluation.curves import read_runs
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.results import Result
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.runs.abstract import abstract_batch
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.conditioning import Conditioning
from contextdiff_jax.tasks.diffusion import DiffusionTask


def measure_costs(cascade: Cascade, batch_size: int, turns: int) -> list[StageCost]:
    """Returns each stage's cost, without the adapter first where it has one, timed in turns."""
    costs = []
    for number, stage in enumerate(cascade.stages):
        sides = [stage]
        if stage.task.adapter is not None:
            plain = dataclasses.replace(stage, task=without_adapter(stage.task))
            sides = [plain, stage]
        seconds = _take_turns(cascade, number, sides, batch_size, turns)
        for side, measured in zip(sides, seconds, strict=True):
            costs.append(
                StageCost(
                    stage=stage.name,
                    adapter=side.task.adapter is not None,
                    parameters=parameters(side),
                    training_flops=training_flops(side),
                    sampling_flops=sampling_flops(side),
                    sampling_seconds=tuple(measured),
                )
            )
    return costs


def without_adapter(task: DiffusionTask) -> DiffusionTask:
    """Returns the task with the adapter and its own encoders left out: it costs what plain does."""
    conditioning = Conditioning(task.conditioning.text)
    return dataclasses.replace(task, adapter=None, conditioning=conditioning)


def parameters(stage: Stage) -> dict[str, int]:
    """Returns the number of parameters by part: denoiser, adapter, frozen encoders."""
    conditioning = stage.task.conditioning
    parts = {"denoiser": stage.params["denoiser"]}
    if stage.task.adapter is not None:
        parts["adapter"] = stage.params["adapter"]
        parts["clip_image"] = conditioning.clip_image.params
        if conditioning.clip_text is not conditioning.text:
            parts["clip_text"] = conditioning.clip_text.params
    parts["text"] = conditioning.text.params
    return {
        name: int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))
        for name, tree in parts.items()
    }


def training_flops(stage: Stage) -> float:
    """Returns the operations of the gradient of one image's loss, its texts' encoding included."""
    task = _kept_activations(stage.task)
    batch = abstract_batch(task, 1)
    gradient = jax.grad(task.loss, has_aux=True)
    return model_flops(gradient, stage.params, stage.frozen, batch, jax.random.key(0))


def sampling_flops(stage: Stage) -> float:
    """Returns the operations of one picture's sampling, its prompt's encoding included."""
    task = stage.task
    batch = {name: leaf for name, leaf in abstract_batch(task, 1).items() if name != "image"}
    image = jax.ShapeDtypeStruct((1, task.resolution, task.resolution, 3), jnp.float32)
    extras = jax.eval_shape(task.extras, image, jax.random.key(0))
    keys = sample_keys(0, jnp.arange(1))

    def draw(params, frozen, batch, keys, extras):
        return task.sample(params, frozen, batch, keys, stage.sampler, extras)

    return model_flops(draw, stage.params, stage.frozen, batch, keys, extras)


def _kept_activations(task: DiffusionTask) -> DiffusionTask:
    """Nothing computed twice: what the model itself needs."""
    config = dataclasses.replace(task.denoiser.config, remat="none")
    return dataclasses.replace(task, denoiser=task.denoiser.clone(config=config))


def _take_turns(
    cascade: Cascade, number: int, sides: list[Stage], batch_size: int, turns: int
) -> list[list[float]]:
    """Returns seconds per picture of each side's turns, after one run of each to warm up."""
    batch_size = cascade.whole_batch(batch_size, batch_size)
    prompts = ["a picture"] * batch_size
    before = None
    if number:
        side = cascade.stages[number - 1].task.resolution
        before = jnp.zeros((batch_size, side, side, 3))
    inputs = cascade.inputs(number, prompts, np.arange(batch_size), 0, before)

    def seconds(stage: Stage) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(stage.program(*_read_by(stage, inputs)))
        return (time.perf_counter() - begin) / batch_size

    for stage in sides:
        seconds(stage)
    measured = [[seconds(stage) for stage in sides] for _ in range(turns)]
    return [list(side) for side in zip(*measured, strict=True)]


def _read_by(stage: Stage, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (stage.params, stage.frozen, *inputs[2:])


def plan_cost(evaluation: Evaluation) -> Callable[[], Result]:
    """Parameters, operations, training and sampling time, with the adapter and without."""
    training = cost_table.training_seconds(read_runs(evaluation))
    settings = evaluation.settings
    if not settings.export:
        raise ValueError("--export is missing: cost is of its networks")

    def work() -> Result:
        measured = measure_costs(evaluation.cascade, settings.batch_size, settings.turns)
        protocol = {
            **evaluation.protocol(),
            "batch size": settings.batch_size,
            "turns": f"{settings.turns} of each side, alternating, after one to warm up; medians",
            "devices": jax.device_count(),
            "operations": "multiplications and additions of matrix products and convolutions, "
            "text encoding included, nothing computed twice",
        }
        return cost_table.measure(measured, training, protocol)

    return work

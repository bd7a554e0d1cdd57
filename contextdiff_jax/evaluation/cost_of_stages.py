"""Counting and timing what the stages of an export cost, with the adapter and with it off."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.conditions.requests import null_request
from contextdiff_jax.evaluation import cost_table
from contextdiff_jax.evaluation.cost_table import StageCost
from contextdiff_jax.evaluation.curves import read_runs
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.results import Result
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.diffusion import DiffusionTask


def measure_costs(cascade: Cascade, batch_size: int, turns: int) -> list[StageCost]:
    """Returns each stage's cost, without the adapter first where it has one, timed in turns."""
    costs = []
    for number, stage in enumerate(cascade.stages):
        sides = [stage]
        if stage.task.adapter is not None:
            plain = dataclasses.replace(stage, task=stage.task.without_adapter())
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


def parameters(stage: Stage) -> dict[str, int]:
    """Returns the number of parameters by part: the networks, then the frozen encoders."""
    left_out = ("adapter",) if stage.task.adapter is None else ()
    parts = {name: tree for name, tree in stage.params.items() if name not in left_out}
    # One encoder may serve for several things.
    frozen = {each.identity: (name, each.params) for name, each in stage.task.encoders().items()}
    parts |= dict(frozen.values())
    return {
        name: int(sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))
        for name, tree in parts.items()
    }


def training_flops(stage: Stage) -> float:
    """Returns the operations of the gradient of one image's loss, its texts' encoding included."""
    task = _kept_activations(stage.task)
    batch = task.batch_shapes(1)
    gradient = jax.grad(task.loss, has_aux=True)
    return model_flops(gradient, stage.params, stage.frozen, batch, jax.random.key(0))


def sampling_flops(stage: Stage) -> float:
    """Returns the operations of one picture's sampling, its prompt's encoding included."""
    task = stage.task
    keys = sample_keys(0, jnp.arange(1))

    def draw(params, frozen, batch, keys):
        return task.sample(params, frozen, batch, keys, stage.sampler)

    return model_flops(draw, stage.params, stage.frozen, task.sampled_shapes(1), keys)


def _kept_activations(task: DiffusionTask) -> DiffusionTask:
    """Nothing computed twice: what the model itself needs."""
    if not hasattr(task.denoiser.config, "remat"):
        return task
    config = dataclasses.replace(task.denoiser.config, remat="none")
    return dataclasses.replace(task, denoiser=task.denoiser.clone(config=config))


def _take_turns(
    cascade: Cascade, number: int, sides: list[Stage], batch_size: int, turns: int
) -> list[list[float]]:
    """Returns seconds per picture of each side's turns, after one run of each to warm up."""
    batch_size = cascade.whole_batch(batch_size, batch_size)
    requests = [null_request(cascade.conditions)] * batch_size
    before = None
    if number:
        side = cascade.stages[number - 1].task.resolution
        before = jnp.zeros((batch_size, side, side, 3))
    inputs = cascade.inputs(number, requests, np.arange(batch_size), 0, before)

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
        raise ValueError("--export is missing: cost measures its networks")

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

"""A stage of a config in float32, its weights random arrays or shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.parameters import random_like
from contextdiff_jax.config import Config
from contextdiff_jax.runs.abstract import abstract_task
from contextdiff_jax.tasks.diffusion import DiffusionTask


@dataclasses.dataclass(frozen=True)
class Stage:
    """A task, its parameters and what is frozen, a batch to train on: shapes or arrays.

    drawn: the batch that sampling reads, likewise.
    """

    task: DiffusionTask
    params: Any
    frozen: Any
    batch: dict[str, Any]
    drawn: dict[str, Any]


def abstract_stage(config: Config, name: str, batch_size: int, *, adapter: bool) -> Stage:
    """Returns the shapes of stage `name`, with or without the adapter and its encoder."""
    config = dataclasses.replace(config, use_adapter=adapter, dtype="float32")
    task = abstract_task(config, name)
    params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    batches = task.batch_shapes(batch_size), task.sampled_shapes(batch_size)
    return Stage(task, params, task.frozen, *batches)


def random_stage(config: Config, name: str, batch_size: int, *, adapter: bool) -> Stage:
    """Returns the stage with random weights and inputs."""
    stage = abstract_stage(config, name, batch_size, adapter=adapter)
    batch, drawn = map(random_inputs, (stage.batch, stage.drawn))
    return Stage(stage.task, random_like(stage.params), random_like(stage.frozen), batch, drawn)


def random_inputs(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Returns a batch of these shapes."""
    rng = np.random.default_rng(0)
    return {key: _random_input(leaf, rng) for key, leaf in shapes.items()}


def _random_input(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        return jnp.ones(leaf.shape, bool)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(rng.integers(0, 256, leaf.shape), leaf.dtype)

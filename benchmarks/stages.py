"""A stage of a config in float32, its weights random arrays or shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.parameters import random_like
from contextdiff_jax.config import Config
from contextdiff_jax.runs.abstract import abstract_batch, abstract_task
from contextdiff_jax.tasks.diffusion import DiffusionTask


@dataclasses.dataclass(frozen=True)
class Stage:
    """A task, its parameters and a batch of tokenized prompts and images: shapes or arrays."""

    task: DiffusionTask
    params: Any
    batch: dict[str, Any]

    def extras(self) -> dict[str, Any]:
        """Returns the denoiser's further inputs in sampling, as shapes."""
        images = jax.ShapeDtypeStruct(self.batch["image"].shape, jnp.float32)
        return jax.eval_shape(self.task.extras, images, jax.random.key(0))


def abstract_stage(config: Config, name: str, batch_size: int, *, adapter: bool) -> Stage:
    """Returns the shapes of stage `name`, with or without the adapter and its encoder."""
    config = dataclasses.replace(config, use_adapter=adapter, dtype="float32")
    task = abstract_task(config, name)
    params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return Stage(task, params, abstract_batch(task, batch_size))


def random_stage(config: Config, name: str, batch_size: int, *, adapter: bool) -> Stage:
    """Returns the stage with random weights and inputs."""
    stage = abstract_stage(config, name, batch_size, adapter=adapter)
    rng = np.random.default_rng(0)
    conditioning = stage.task.conditioning
    filled = {
        key: dataclasses.replace(encoder, params=random_like(encoder.params))
        for key, encoder in vars(conditioning).items()
        if encoder is not None
    }
    if conditioning.clip_text is conditioning.text:
        filled["clip_text"] = filled["text"]  # one encoder, not two of the same
    conditioning = dataclasses.replace(conditioning, **filled)
    task = dataclasses.replace(stage.task, conditioning=conditioning)
    batch = {key: _random_input(leaf, rng) for key, leaf in stage.batch.items()}
    return Stage(task, random_like(stage.params), batch)


def _random_input(leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        return jnp.ones(leaf.shape, bool)
    return jnp.asarray(rng.integers(0, 256, leaf.shape), leaf.dtype)

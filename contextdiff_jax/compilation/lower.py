"""Lowers what really runs, the training step or the sampling run, for a mesh, from shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.config import Config
from contextdiff_jax.parallel.audit import audit_copies
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, shardings_of
from contextdiff_jax.runs.abstract import abstract_task, abstract_trained_task
from contextdiff_jax.runs.build import diffusion_runs
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.task_config import with_networks
from contextdiff_jax.training.loop import check_batch_size
from contextdiff_jax.training.optimizer import make_optimizer
from contextdiff_jax.training.random import stream_key
from contextdiff_jax.training.state import abstract_state, by_group, sharded_abstract
from contextdiff_jax.training.step import jit_train_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A lowered program and what is known before compiling it.

    parameters: trained ones. model_flops: of one run over the global batch. memory: the audit's
    lines, bytes per device by group.
    """

    lowered: jax.stages.Lowered
    parameters: int
    model_flops: float
    memory: list[str]


def lower_training(config: Config, name: str, mesh: Mesh) -> Program:
    """Lowers one training step of run `name` at its global batch size.

    Raises ValueError for a batch that does not divide, or large parameters left whole.
    """
    run = config.runs[name]
    check_batch_size(run.batch_size, run.optimizer.accumulation, mesh)
    task = abstract_trained_task(config, name)
    optimizer = make_optimizer(run.optimizer, run.steps)
    key = stream_key(config.seed, "init")
    shapes, shardings = abstract_state(task, optimizer, key, mesh)
    frozen_shardings = shardings_of(task.boxed_frozen(), mesh)
    batch = _over_batch(_trained_on(config, name), mesh)
    memory = audit_copies(by_group(shapes, shardings) | {"frozen": (task.frozen, frozen_shardings)})
    step = make_train_step(
        task,
        optimizer,
        seed=config.seed,
        ema_decay=run.optimizer.ema_decay,
        accumulation=run.optimizer.accumulation,
    )
    state = sharded_abstract(shapes, shardings)
    frozen = sharded_abstract(task.frozen, frozen_shardings)
    lowered = jit_train_step(step, shardings, frozen_shardings, mesh).lower(state, frozen, batch)
    plain = abstract_trained_task(without_remat(config), name)
    gradient = jax.grad(plain.loss, has_aux=True)
    flops = model_flops(gradient, shapes.params, plain.frozen, batch, key)
    return Program(lowered, count_scalars(shapes.params), flops, memory)


def _trained_on(config: Config, name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch of run `name`: with `data.latents` of latents, not pictures."""
    run, task = config.runs[name], abstract_task(config, name)
    shapes = task.stored_shapes if run.data.latents else task.batch_shapes
    return shapes(run.batch_size)


def lower_sampling(config: Config, name: str, mesh: Mesh, batch_size: int) -> Program:
    """Lowers the whole sampling run of stage `name` for batch_size pictures.

    Raises ValueError for a run that draws none, or a batch that does not divide.
    """
    drawing = diffusion_runs(config)
    if name not in drawing:
        raise ValueError(
            f"--what=sample --run={name}: must be one of {', '.join(drawing) or '(none)'}, the "
            "runs that draw pictures"
        )
    check_batch_size(batch_size, 1, mesh)
    task = abstract_task(config, name)
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    shardings, params = shardings_of(boxed, mesh), nn.unbox(boxed)
    frozen_shardings = shardings_of(task.boxed_frozen(), mesh)
    frozen = sharded_abstract(task.frozen, frozen_shardings)
    keys = jax.eval_shape(lambda: sample_keys(0, jnp.arange(batch_size)))
    batch, keys = (_over_batch(tree, mesh) for tree in (task.sampled_shapes(batch_size), keys))
    memory = audit_copies(
        {"params": (params, shardings), "frozen": (task.frozen, frozen_shardings)}
    )

    def draw(params, frozen, batch, keys):
        return task.sample(params, frozen, batch, keys, task.sampler)

    args = (sharded_abstract(params, shardings), frozen, batch, keys)
    flops = model_flops(draw, *args)
    return Program(jit_on_mesh(draw, mesh).lower(*args), count_scalars(params), flops, memory)


def without_remat(config: Config) -> Config:
    """Returns the config with every activation kept: what the model itself computes."""

    def kept(network: Any) -> Any:
        return dataclasses.replace(network, remat="none") if hasattr(network, "remat") else network

    runs = {
        name: dataclasses.replace(run, task=with_networks(run.task, kept))
        for name, run in config.runs.items()
    }
    return dataclasses.replace(config, runs=runs)


def _over_batch(tree: Any, mesh: Mesh) -> Any:
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def count_scalars(tree: Any) -> int:
    """Returns the number of scalars in a tree of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

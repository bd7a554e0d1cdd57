"""The training state: what a checkpoint holds, and how it is laid out on a mesh."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh

from contextdiff_jax.parallel.sharding import like_params, replicated, shardings_of
from contextdiff_jax.training.parameter_names import merged
from contextdiff_jax.training.task import Params, Task


class TrainState(flax.struct.PyTreeNode):
    """Everything training changes.

    step: int32 scalar, the number of updates done. params: float32. ema: float32 moving average.
    failed_at: int32 scalar, the first step whose loss or gradient was not finite, -1 for none;
    from that step on nothing else changes, so the state is the last sound one.
    """

    step: jax.Array
    params: Any
    ema: Any
    optimizer: Any
    failed_at: jax.Array


def new_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    weights: Params | None = None,
) -> TrainState:
    """Returns the state before the first step (parameters unboxed). Pure; meant to be jitted.

    weights: of the parameters that do not begin anew, as nested dicts.
    """
    return _before_the_first_step(merged(nn.unbox(task.init(key)), weights or {}), optimizer)


def _before_the_first_step(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates its input, and two leaves must not share a buffer.
        ema=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        failed_at=jnp.full((), -1, jnp.int32),
    )


def abstract_state(
    task: Task, optimizer: optax.GradientTransformation, key: jax.Array, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Returns (shapes, shardings) of the state, without allocating anything."""
    boxed = jax.eval_shape(task.init, key)
    shapes = jax.eval_shape(lambda new: _before_the_first_step(new, optimizer), nn.unbox(boxed))
    of_params = shardings_of(boxed, mesh)
    shardings = TrainState(
        step=replicated(mesh),
        params=of_params,
        ema=of_params,
        optimizer=like_params(shapes.optimizer, shapes.params, of_params, mesh),
        failed_at=replicated(mesh),
    )
    return shapes, shardings


def sharded_abstract(shapes: Any, shardings: Any) -> Any:
    """Returns ShapeDtypeStructs that carry their sharding, as restoring a checkpoint needs."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def by_group(shapes: TrainState, shardings: TrainState) -> dict[str, tuple[Any, Any]]:
    """Returns {group: (shapes, shardings)} of what takes memory in a state, for the audit."""
    groups = ("params", "ema", "optimizer")
    return {group: (getattr(shapes, group), getattr(shardings, group)) for group in groups}

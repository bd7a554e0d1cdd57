"""One jitted training step: gradients, accumulation, update, moving average, finiteness."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated
from contextdiff_jax.training.random import stream_key
from contextdiff_jax.training.state import TrainState
from contextdiff_jax.training.task import Batch, Metrics, Task


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    accumulation: int = 1,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """Returns step(state, frozen, batch) -> (state, metrics), pure and ready for jax.jit.

    A step whose loss or gradient norm is not finite changes nothing but `failed_at`, and neither
    does any step after it: the host looks at the flag when it logs, without a sync per step.
    """

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
        key = stream_key(seed, "train", state.step)
        grads, metrics = _gradients(task, state.params, frozen, batch, key, accumulation)
        norm = optax.tree.norm(grads)
        sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm) & (state.failed_at < 0)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
        ema = jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), state.ema, params)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(sound, n, o), new, old)  # noqa: E731
        first_failure = jnp.where(sound | (state.failed_at >= 0), state.failed_at, state.step)
        new_state = TrainState(
            step=state.step + sound.astype(jnp.int32),
            params=keep(params, state.params),
            ema=keep(ema, state.ema),
            optimizer=keep(optimizer_state, state.optimizer),
            failed_at=first_failure,
        )
        metrics = metrics | {"gradient_norm": norm, "parameter_norm": optax.tree.norm(params)}
        return new_state, metrics | {"failed_at": first_failure}

    return step


def jit_train_step(
    step: Callable, state_shardings: Any, frozen_shardings: Any, mesh: Mesh
) -> jax.stages.Wrapped:
    """Returns the step compiled for a mesh: the state donated, the batch over (data, fsdp)."""
    return jit_on_mesh(
        step,
        mesh,
        donate_argnums=0,
        in_shardings=(state_shardings, frozen_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
    )


def _gradients(
    task: Task, params: Any, frozen: Any, batch: Batch, key: jax.Array, accumulation: int
) -> tuple[Any, Metrics]:
    """Mean gradient and metrics over `accumulation` equal micro-batches, taken in order."""

    def of(part: Batch, key: jax.Array) -> tuple[Any, Metrics]:
        grad = jax.grad(lambda p: _with_loss(task.loss(p, frozen, part, key)), has_aux=True)
        return grad(params)

    if accumulation == 1:
        return of(batch, key)
    # Strided parts: every micro-batch keeps the whole batch's sharding over devices.
    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, accumulation, *x.shape[1:]), 0, 1), batch
    )

    def add(total: Any, item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        part, index = item
        return jax.tree.map(jnp.add, total, of(part, jax.random.fold_in(key, index))), None

    first = jax.eval_shape(of, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    total, _ = jax.lax.scan(add, zeros, (parts, jnp.arange(accumulation)))
    return jax.tree.map(lambda leaf: leaf / accumulation, total)


def _with_loss(result: tuple[jax.Array, Metrics]) -> tuple[jax.Array, Metrics]:
    loss, metrics = result
    return loss, metrics | {"loss": loss}

"""The bias b_t = k_t r(x0_hat, c, t) of an estimate at several times, from one call."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion.schedules import Schedule, expand

# relation(x0_hat (B, ...), times: tuple of float32 (B,)) -> tuple of r (B, ...), one per time.
# It closes over the true condition; one encoding of x0_hat serves all times.
Relation = Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def biases(
    schedule: Schedule,
    relation: Relation | None,
    x0_hat: jax.Array,
    times: tuple[jax.Array, ...],
) -> tuple[jax.Array | float, ...]:
    """Returns b at each of the times, like x0_hat (B, ...), or zeros without a relation.

    times: integers, each () or (B,).
    The adapter knows the times 1..T. At 0 it is asked for time 1, and k_0 = 0 makes the bias 0.
    """
    if relation is None:
        return tuple(0.0 for _ in times)
    asked = tuple(jnp.full(x0_hat.shape[:1], jnp.maximum(time, 1), jnp.float32) for time in times)
    relations = relation(x0_hat, asked)
    if len(relations) != len(times) or any(r.shape != x0_hat.shape for r in relations):
        raise ValueError(
            f"the relation returned shapes {[r.shape for r in relations]} for {len(times)} times "
            f"and an estimate of shape {x0_hat.shape}: it must return one like it per time"
        )
    return tuple(
        expand(schedule.gain(time), r) * r.astype(jnp.float32)
        for time, r in zip(times, relations, strict=True)
    )

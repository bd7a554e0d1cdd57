"""Editing in lockstep: the source is denoised beside the edit, which takes its attention over.

A step at t of `fused` ones has two or three rows for each frame, the frame first: the source, the
edit, and under guidance the edit without its condition, all at time t. The source's row is not
drawn: it is the inversion's own state x_s, which the network saw with this very t. Later steps have
no source row. Both parts are one scan each.

Sources: Qi et al. 2023 (FateZero), whose stored maps are computed again here.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from contextdiff_jax.diffusion.process import Process, checked_prediction
from contextdiff_jax.diffusion.shapes import Array

SOURCE, EDIT, NULL = "source", "edit", "null"  # rows of a frame, in this order


class Predict(Protocol):
    """The network for rows of one clip."""

    def __call__(
        self, x: jax.Array, t: jax.Array, rows: tuple[str, ...], control: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the prediction and what it observes, a tree of arrays.

        x: (F * len(rows), ...). t: (F * len(rows),) float32. control: of this step, where there is
        a source row; else None.
        """


class Blend(Protocol):
    """Changes the state after a step, with a state of its own."""

    def init(self, x: jax.Array) -> Any:
        """Returns its state before the first step; x (F, ...)."""

    def after(
        self, x: jax.Array, source: jax.Array, observed: Any, number: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        """Returns x (F, ...) after step `number`, from 0, and its state.

        source: the inversion's state at the same time.
        """


class NoBlend:
    """Changes nothing."""

    def init(self, x: jax.Array) -> tuple:
        return ()

    def after(self, x, source, observed, number, state):
        return x, state


def edit(
    process: Process,
    predict: Predict,
    path: Float[Array, "states frames *data"],
    timesteps: np.ndarray,
    **settings: Any,
) -> Float[Array, "frames *data"]:
    """Returns the edited x0 (F, ...) of `observed_edit`, whose settings these are."""
    return observed_edit(process, predict, path, timesteps, **settings)[0]


def observed_edit(
    process: Process,
    predict: Predict,
    path: Float[Array, "states frames *data"],
    timesteps: np.ndarray,
    *,
    scale: float,
    controls: Any = None,
    fused: int = 0,
    blend: Blend | None = None,
) -> tuple[Float[Array, "frames *data"], Any]:
    """Returns the edited x0 (F, ...), by deterministic DDIM from the first state of the path.

    The second value is the blend's state after the last step.

    process: its relation is of the edit's condition. path: (n + 1, F, ...), the inversion's states
    at the timesteps, falling. scale: of guidance; at 1 there is no row without the condition.
    controls: a tree of arrays (fused, ...), what each of the first `fused` steps is told.

    Raises ValueError where a shape does not fit.
    """
    steps = len(timesteps) - 1
    if len(path) != steps + 1 or not 0 <= fused <= steps:
        raise ValueError(
            f"a path of {len(path)} states and {fused} fused steps for {steps} steps: must be "
            f"{steps + 1}, and at most {steps}"
        )
    blend = blend or NoBlend()
    times, guided = jnp.asarray(np.asarray(timesteps)), (EDIT,) if scale == 1 else (EDIT, NULL)

    def part(carry: Any, first: int, last: int, rows: tuple[str, ...], controls: Any) -> Any:
        def body(carry, step):
            x, state = carry
            number, source, control = step
            t, s = times[number], times[number + 1]
            given = jnp.stack([source if row == SOURCE else x for row in rows], axis=1)
            given = given.reshape(-1, *x.shape[1:])
            predicted, observed = predict(given, _full(given, t), rows, control)
            predicted = checked_prediction(predicted, given)
            x0_hat = _guided(process, predicted, given, t, rows, scale)
            x = process.step(x, x0_hat, t, s, eta=0, noise=None)
            return blend.after(x, source, observed, number, state), None

        steps = (jnp.arange(first, last), path[first + 1 : last + 1], controls)
        return jax.lax.scan(body, carry, steps)[0]

    carry = (path[0], blend.init(path[0]))
    if fused:
        carry = part(carry, 0, fused, (SOURCE, *guided), controls)
    if fused < steps:
        carry = part(carry, fused, steps, guided, None)
    return carry


def _full(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.full(x.shape[:1], t, jnp.float32)


def _guided(process: Process, predicted, given, t, rows: tuple[str, ...], scale: float):
    x0 = process.x0_of(predicted, given, t).reshape(-1, len(rows), *given.shape[1:])
    kept = x0[:, rows.index(EDIT)]
    if NULL not in rows:
        return kept
    null = x0[:, rows.index(NULL)]
    return null + scale * (kept - null)

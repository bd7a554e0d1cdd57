"""The density of given images under a flow's ODE dx = v dt, by the change of variables.

    log p(x_0) = log N(x_1; 0, I) + integral of div v over t in [0, 1]        (Chen et al. 2018)

with x_t the path from x_0 up to the noise and the divergence by Hutchinson's estimate e^T J e, e
of Rademacher signs (FFJORD, Grathwohl et al. 2019): unbiased, exact where J is diagonal. The path
does not depend on the signs, so they are drawn anew for each step: their errors average out.

A network knows the times 1..T. Below the first one the velocity is that at the first, which makes
the density that of a flow of its own, finite even where the data are points. Between two times of
the grid the network is told the fraction. No relation is read: the velocity alone is the model.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Denoise

_UNIFORM, _SIGNS = 0, 1  # streams of an image's key

BITS_OF_A_BIN = float(np.log2(127.5))
"""What a density on [-1, 1] adds to become one of 8-bit values, whose bins are 2 / 255 wide."""


@dataclasses.dataclass(frozen=True)
class OdeTerms:
    """-log2 of the density of B images, float32, in bits per dimension of values in [-1, 1].

    prior (B,): of the noise that the image comes to. volume (B, P): minus the integral of the
    divergence, by each of P probes.
    """

    prior: jax.Array
    volume: jax.Array


jax.tree_util.register_dataclass(OdeTerms)


def dequantized(x0: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns x0 (B, ...), 8-bit values mapped by v / 127.5 - 1, spread evenly over their bins.

    keys: (B,) from `sample_keys`. The bins are centred on the values that networks are trained on.
    """

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(key, _UNIFORM), x0.shape[1:])

    return x0 + (jax.vmap(draw)(keys) - 0.5) / 127.5


def solver_times(path: LinearPath, steps: int) -> np.ndarray:
    """Returns the times t of `steps` steps, at least 2: float64 (steps + 1,), rising from 0 to 1.

    The first step ends at the path's first time. From there the cube roots are evenly spaced, so
    that steps are short where the velocity changes at the rate 1 / t.

    Raises ValueError for fewer steps.
    """
    if steps < 2:
        raise ValueError(f"ode_steps = {steps}: must be at least 2")
    first = path.levels(np.array(1))[1]
    roots = np.linspace(np.cbrt(first), 1, steps)
    return np.concatenate([[0.0], roots**3])


def ode_terms(
    process: FlowProcess,
    denoise: Denoise,
    x: jax.Array,
    keys: jax.Array,
    *,
    times: np.ndarray,
    probes: int = 1,
) -> OdeTerms:
    """Returns the terms of states x (B, ...) at t = 0. Pure, one `lax.scan` of steps of RK4.

    process, denoise: as `sampling.loop.sample` takes them; the condition is always kept. Each of
    the steps calls the network four times, backwards as well: once for each probe.
    keys: (B,) from `sample_keys`; an image's signs depend on its key and the step alone.
    times: from `solver_times`.
    """
    halves = (times[:-1] + times[1:]) / 2
    visited = np.stack([times[:-1], halves, halves, times[1:]], axis=1)
    spans = jnp.asarray(np.diff(times), jnp.float32)

    def visit(x: jax.Array, step) -> tuple[jax.Array, jax.Array]:
        number, span, at = step
        signs = _signs(keys, number, probes, x.shape[1:])

        def flow(x: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return _flow(process, denoise, x, at, signs)

        return _runge_kutta(flow, x, span, at, jnp.zeros(signs.shape[:2]))

    steps = (jnp.arange(len(spans)), spans, _place(process.schedule, visited))
    x, grown = jax.lax.scan(visit, x.astype(jnp.float32), steps)
    nats = x[0].size * np.log(2)  # that make a bit per dimension
    square = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
    prior = square / (2 * nats) + 0.5 * np.log2(2 * np.pi)
    return OdeTerms(prior, -jnp.sum(grown, axis=0).T / nats)


def _place(path: LinearPath, times: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns the times t at which the velocity is taken, and what a network is told there."""
    first = path.levels(np.array(1))[1]
    t = np.maximum(times, first)
    return tuple(jnp.asarray(each, jnp.float32) for each in (t, path.places(t)))


def _signs(keys: jax.Array, step: jax.Array, probes: int, shape: tuple[int, ...]) -> jax.Array:
    """Returns Rademacher signs (P, B, *shape) of one step."""

    def draw(key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, _SIGNS), step)
        # Each probe has a key of its own, so that more of them leave the first as it is.
        own = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(probes))
        return jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(own)

    return jnp.swapaxes(jax.vmap(draw)(keys), 0, 1)


def _flow(
    process: FlowProcess,
    denoise: Denoise,
    x: jax.Array,
    at: tuple[jax.Array, jax.Array],
    signs: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns the velocity at x (B, ...) and its divergence (P, B) by each probe."""
    t, told = at
    keep = jnp.ones(x.shape[:1], bool)

    def velocity(x: jax.Array) -> jax.Array:
        return process.velocity(process.predict(denoise, x, told, keep), x, t)

    # Backwards, as training goes: some attention kernels know no other derivative.
    v, pull = jax.vjp(velocity, x)
    rows = jax.vmap(lambda each: pull(each)[0])(signs)
    return v, jnp.sum(rows * signs, axis=tuple(range(2, signs.ndim)))


def _runge_kutta(
    flow: Callable[..., tuple[jax.Array, jax.Array]],
    x: jax.Array,
    span: jax.Array,
    at: tuple[jax.Array, jax.Array],
    none: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns x after the classical step of fourth order, and the divergence's integral over it.

    at: what `flow` is given beside x, (4,) each, at the step's beginning, middle twice, and end.
    none: a divergence of 0. One loop of four, so that the network is compiled once.
    """

    def stage(carry, each):
        v, moved, grown = carry
        lean, weight, place = each
        v, divergence = flow(x + span * lean * v, place)
        return (v, moved + span * weight * v, grown + span * weight * divergence), None

    start = (jnp.zeros_like(x), x, none)
    stages = (jnp.array([0, 0.5, 0.5, 1]), jnp.array([1, 2, 2, 1]) / 6, at)
    return jax.lax.scan(stage, start, stages)[0][1:]

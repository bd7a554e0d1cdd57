"""One step of the exact bound (ContextDiff, eq. 4): what the model makes of a drawn x_t.

x_t is drawn from q(x_t | x0, c), x0_hat estimated from it, and the step from t to s compared under
x0 with its biases and under x0_hat with its own. Training by the bound, the diagnostics and the
evaluation of bits per dimension all take their terms from here.
"""

from typing import NamedTuple

import jax

from contextdiff_jax.diffusion import bound
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.process import Denoise, Keep, Process


class BoundStep(NamedTuple):
    """nats (B,): the term, a KL, or L_0 on 8-bit data where s = 0. The others are like x0."""

    nats: jax.Array
    x_t: jax.Array
    predicted: jax.Array
    x0_hat: jax.Array


class Drawn(NamedTuple):
    """What a term is computed on.

    true: x0 (B, ...), 8-bit values mapped to [-1, 1], with its biases at t and s < t, integers ()
    or (B,). noise: N(0, I) like x0. keep: see `process`.
    """

    true: Biased
    t: jax.Array
    s: jax.Array
    noise: jax.Array
    keep: Keep


def bound_step(
    process: Process,
    denoise: Denoise,
    drawn: Drawn,
    *,
    clip: bool = False,
    std: float | None = None,
) -> BoundStep:
    """Returns the term of the step from t to s.

    clip: limit x0_hat to its bounds, as a sampler with threshold static does.
    std: of the decoder, see `bound.decoder_std`.
    """
    true, t, s = drawn.true, drawn.t, drawn.s
    x_t = process.diffuse(true.x0, true.bias_t, t, drawn.noise)
    predicted = process.predict(denoise, x_t, t, drawn.keep)
    x0_hat = process.x0_of(predicted, x_t, t)
    if clip:
        x0_hat = process.bounded(x0_hat)
    estimate = process.biased(x0_hat, t, s)
    nats = bound.bound_term(
        process.schedule, true, estimate, t, nll=bound.discretized_nll, s=s, std=std
    )
    return BoundStep(nats, x_t, predicted, x0_hat)

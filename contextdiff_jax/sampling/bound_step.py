"""One step of the exact bound (ContextDiff, eq. 4): what the model makes of a drawn x_t.

x_t is drawn from q(x_t | x0, c), x0_hat estimated from it, and the step from t to s compared under
x0 with its biases and under x0_hat with its own. Training by the bound, the diagnostics and the
evaluation of bits per dimension all take their terms from here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion import bound, marginals, predictions
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.sampling.bias import Relation, biases
from contextdiff_jax.sampling.guidance import Denoise, predict


class BoundStep(NamedTuple):
    """nats (B,): the term, a KL, or L_0 on 8-bit data where s = 0. The others are like x0."""

    nats: jax.Array
    x_t: jax.Array
    predicted: jax.Array
    x0_hat: jax.Array


def bound_step(
    schedule: Schedule,
    denoise: Denoise,
    relation: Relation | None,
    x0: jax.Array,
    bias_t: jax.Array | float,
    bias_s: jax.Array | float,
    t: jax.Array,
    s: jax.Array,
    noise: jax.Array,
    keep: jax.Array,
    prediction: predictions.PredictionKind,
    *,
    clip: bool = False,
    std: float | None = None,
) -> BoundStep:
    """Returns the term of the step from t to s < t for x0 (B, ...) and N(0, I) noise like it.

    denoise, relation, prediction: as `loop.sample` takes them. x0: 8-bit values mapped to [-1, 1].
    bias_t, bias_s: the biases of x0 at t and s, from `biases`. t, s: integers, () or (B,).
    keep: (B,) bool, False where the denoiser must not see the condition.
    clip: limit x0_hat to [-1, 1], as a sampler with threshold static does.
    std: of the decoder, see `bound.decoder_std`.
    """
    x_t = marginals.diffuse(schedule, x0, bias_t, t, noise)
    predicted = predict(denoise, x_t, t, keep)
    x0_hat = predictions.to_x0(prediction, schedule, predicted, x_t, t)
    if clip:
        x0_hat = jnp.clip(x0_hat, -1.0, 1.0)
    hat_t, hat_s = biases(schedule, relation, x0_hat, (t, s))
    nats = bound.bound_term(
        *(schedule, x0, x0_hat, bias_t, hat_t, bias_s, hat_s, t),
        nll=bound.discretized_nll,
        s=s,
        std=std,
    )
    return BoundStep(nats, x_t, predicted, x0_hat)

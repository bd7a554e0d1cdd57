"""What a denoiser predicts: x0, eps' or v', and the maps between them.

The primed quantities absorb the bias,

    eps' = (x_t - sqrt(ab_t) x0) / sqrt(1 - ab_t) = eps + b_t / sqrt(1 - ab_t)
    v'   = sqrt(ab_t) eps' - sqrt(1 - ab_t) x0                (v: Salimans and Ho 2022)

so x0 follows from x_t and a prediction by the usual linear maps, without the bias: a pretrained
eps- or v-network works unchanged.

Here kind is a `PredictionKind`; prediction, x_t, x0: (B, ...) float32; t: integers in 1..T, () or
(B,). At t = 0 there is no noise, so eps' of an x0-prediction is not finite there.
"""

from typing import Literal, get_args

from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import Data, Time

PredictionKind = Literal["x0", "eps", "v"]


def check_kind(kind: str) -> None:
    """Raises ValueError unless kind is a `PredictionKind`."""
    if kind not in get_args(PredictionKind):
        raise ValueError(
            f"prediction kind {kind!r}: must be one of {', '.join(get_args(PredictionKind))}"
        )


def to_x0(
    kind: PredictionKind,
    schedule: Schedule,
    prediction: Data,
    x_t: Data,
    t: Time,
) -> Data:
    """Returns the estimate of x0 that a prediction at (x_t, t) stands for."""
    check_kind(kind)
    if kind == "x0":
        return prediction
    signal, sigma = expand(schedule.signal(t), x_t), expand(schedule.sigma(t), x_t)
    if kind == "eps":
        return (x_t - sigma * prediction) / signal
    return signal * x_t - sigma * prediction


def to_eps(
    kind: PredictionKind,
    schedule: Schedule,
    prediction: Data,
    x_t: Data,
    t: Time,
) -> Data:
    """Returns the estimate of eps' that a prediction at (x_t, t) stands for."""
    check_kind(kind)
    if kind == "eps":
        return prediction
    signal, sigma = expand(schedule.signal(t), x_t), expand(schedule.sigma(t), x_t)
    if kind == "x0":
        return (x_t - signal * prediction) / sigma
    return sigma * x_t + signal * prediction


def target(kind: PredictionKind, schedule: Schedule, x0: Data, x_t: Data, t: Time) -> Data:
    """Returns what a network of this kind should predict at (x_t, t): x0, eps' or v'."""
    check_kind(kind)
    if kind == "x0":
        return x0
    eps = to_eps("x0", schedule, x0, x_t, t)
    if kind == "eps":
        return eps
    return expand(schedule.signal(t), x0) * eps - expand(schedule.sigma(t), x0) * x0

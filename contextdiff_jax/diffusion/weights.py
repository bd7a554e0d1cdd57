"""Loss weights, as named options.

A weight w(t) is defined on the squared error of x0 (eq. 6). A network may predict eps' or v'
instead; then the same loss is the squared error of ITS prediction times w(t) / c(t), with
c = ab/(1 - ab) for eps' and c = 1/(1 - ab) for v'. Forming the loss there never divides an error
by sqrt(ab_t), which vanishes towards T.

With snr = ab/(1 - ab):

x0:               1, the paper
snr:              snr, which is the uniform weight on eps (Ho et al. 2020)
snr_plus_1:       1 + snr, which is the uniform weight on v (Salimans and Ho 2022)
min_snr_5:        min(snr, 5) (Hang et al. 2023)
min_snr_5_plus_1: 1 + min(snr, 5), the uniform weight on v without its emphasis on the last details
flow:             (1 + sqrt(snr))^2, the uniform weight on the velocity of flow matching at the same
                  times, (x_t - x0) / t on the linear path (Kingma and Gao 2023)
p2:               ab, which is the weight 1/(1 + snr) on eps (Choi et al. 2022 with k = gamma = 1)

WHAT A WEIGHT LEAVES OUT. snr, min_snr_5 and p2 vanish towards T, where a picture is decided that
nothing but the condition tells: where things are, and how many. An eps-network's loss cannot
avoid it. A network that predicts x0 or v then hardly learns what is there at t = T from its
condition, and its samples, which begin there, ignore it: docs/evidence/loss_weights.md, on rendered
scenes. The others are at least 1 everywhere.
"""

from typing import Literal, get_args

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from contextdiff_jax.diffusion.predictions import PredictionKind, check_kind
from contextdiff_jax.diffusion.schedules import Schedule, at_time
from contextdiff_jax.diffusion.shapes import Array

WeightName = Literal["x0", "snr", "snr_plus_1", "min_snr_5", "min_snr_5_plus_1", "flow", "p2"]

VANISHING: tuple[WeightName, ...] = ("snr", "min_snr_5", "p2")
"""Those that are 0 where there is no signal, as a network that predicts eps needs it."""


def loss_weight(
    name: WeightName, kind: PredictionKind, schedule: Schedule, t: Int[ArrayLike, "*times"]
) -> Float[Array, "*times"]:
    """Returns the weight, float32 like t (integers in 1..T), on the squared error of `kind`.

    NaN at t = 0, where nothing is left to predict.
    """
    check_kind(kind)
    if name not in get_args(WeightName):
        raise ValueError(f"loss weight {name!r}: must be one of {', '.join(get_args(WeightName))}")
    alpha_bar = schedule.alpha_bar[1:]
    snr = alpha_bar / (1 - alpha_bar)
    of_x0 = {
        "x0": np.ones_like(snr),
        "snr": snr,
        "snr_plus_1": snr + 1,
        "min_snr_5": np.minimum(snr, 5),
        "min_snr_5_plus_1": np.minimum(snr, 5) + 1,
        "flow": (np.sqrt(snr) + 1) ** 2,
        "p2": alpha_bar,
    }[name]
    squared_error_ratio = {"x0": np.ones_like(snr), "eps": snr, "v": 1 / (1 - alpha_bar)}[kind]
    table = np.concatenate([[np.nan], of_x0 / squared_error_ratio])
    return at_time(table, t)

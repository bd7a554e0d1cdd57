"""Which times training draws, of either kind.

uniform: in 1..T, whatever levels of noise a schedule has there. logit_normal: the share of noise
s = sigma / (signal + sigma) in [0, 1] is the sigmoid of a Gaussian. On the linear path s is the
time t of the formulas (before a shift), and logit(s) = -log(snr) / 2 on every schedule: so both
kinds have the same law of the signal-to-noise ratio, and with loss_weight flow the paper's process
has the loss of a flow, up to what the network predicts (Kingma and Gao 2023, arXiv 2303.00848).
Where a schedule ends before s = 1, as Stable Diffusion's does at 0.94, what lies beyond is T.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig


def draw_times(
    config: DiffusionConfig, schedule: Schedule | LinearPath, key: jax.Array, count: int
) -> jax.Array:
    """Returns times (count,), integers in 1..T of the law of `config.times`, spread evenly."""
    return time_at(placed(config, schedule, time_places(key, count)), schedule.num_steps)


def time_places(key: jax.Array, count: int) -> jax.Array:
    """Returns places (count,), each uniform in [0, 1), together spread evenly over it.

    One random start serves all (Kingma et al. 2021, VDM, appendix I.1): the loss differs by orders
    of magnitude between times, so independent times would make a noisy gradient.
    """
    return (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


def placed(config: DiffusionConfig, schedule: Schedule | LinearPath, place: jax.Array) -> jax.Array:
    """Returns places in [0, 1] of the range of times, of the law of `config.times`.

    place: uniform in [0, 1).
    """
    if config.times == "uniform":
        return place
    share = jax.nn.sigmoid(config.time_mean + config.time_std * ndtri(place))
    return schedule.place_of(share)


def time_at(place: jax.Array, num_steps: int) -> jax.Array:
    """Returns the time in 1..T at each place in [0, 1] of its range."""
    # Rounding may carry a place just below 1 to T itself.
    return 1 + jnp.minimum((place * num_steps).astype(jnp.int32), num_steps - 1)

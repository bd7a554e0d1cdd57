"""Noise schedules, and the timesteps that a sampler visits.

Time is an integer t in 0..T with 0 = clean data. Everything derives from alpha_bar (T + 1 values,
alpha_bar[0] = 1): without bias, x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) eps.

Tables are computed in float64 and cast to float32 once. Differences such as 1 - alpha_bar_t /
alpha_bar_s lose most of their digits when formed in float32, so they come from the logarithm,
kept as the unevaluated sum of two float32 tables.
"""

import dataclasses
import functools
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from contextdiff_jax.diffusion.shapes import At, Times

ScheduleName = Literal["cosine", "linear", "scaled_linear"]
Spacing = Literal["trailing", "leading", "linspace"]

_MAX_BETA = 0.999


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule of a process with T steps.

    Hashable and comparable by value, so it may be a static argument of `jax.jit`. The methods take
    integer times of any shape, NumPy or JAX, and return float32 of that shape: NaN for a time
    outside 0..T.

    name: for messages.
    alpha_bar: float64 (T + 1,), from exactly 1 strictly down to a value above 0, T >= 2.
    """

    name: str
    alpha_bar: np.ndarray

    def __post_init__(self):
        table = np.array(self.alpha_bar, dtype=np.float64)
        if table.ndim != 1 or len(table) < 3:
            raise ValueError(
                f"alpha_bar of shape {table.shape}: must be one-dimensional with at least 3 entries"
            )
        if table[0] != 1 or not np.all(np.diff(table) < 0) or not table[-1] > 0:
            raise ValueError(
                f"alpha_bar from {table[0]} to {table[-1]}: "
                "must start at 1 and fall strictly to a value above 0"
            )
        table.flags.writeable = False
        object.__setattr__(self, "alpha_bar", table)

    def __hash__(self) -> int:
        return hash((self.name, self.num_steps))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Schedule):
            return NotImplemented
        return self.name == other.name and np.array_equal(self.alpha_bar, other.alpha_bar)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def alpha_bar_at(self, t: Times) -> At:
        """alpha_bar_t."""
        return at_time(self._tables["alpha_bar"], t)

    def described(self) -> tuple[str, np.floating, np.floating]:
        """Returns what tells it from others; repr tells it."""
        return self.name, self.alpha_bar[1], self.alpha_bar[-1]

    def signal(self, t: Times) -> At:
        """sqrt(alpha_bar_t), the factor of x0 in x_t."""
        return at_time(self._tables["signal"], t)

    def variance(self, t: Times) -> At:
        """1 - alpha_bar_t, the variance of x_t given x0."""
        return at_time(self._tables["variance"], t)

    def sigma(self, t: Times) -> At:
        """sqrt(1 - alpha_bar_t), the factor of the noise in x_t."""
        return at_time(self._tables["sigma"], t)

    def gain(self, t: Times) -> At:
        """k_t = sqrt(alpha_bar_t) (1 - sqrt(alpha_bar_t)), the factor of r in the bias b_t."""
        return at_time(self._tables["gain"], t)

    def snr(self, t: Times) -> At:
        """alpha_bar_t / (1 - alpha_bar_t); infinite at t = 0."""
        return at_time(self._tables["snr"], t)

    def log_ratio(self, t: Times, s: Times) -> At:
        """log(alpha_bar_t / alpha_bar_s), accurate even where the two nearly agree."""
        high, low = self._tables["log_high"], self._tables["log_low"]
        return (at_time(high, t) - at_time(high, s)) + (at_time(low, t) - at_time(low, s))

    def beta(self, t: Times, s: Times) -> At:
        """1 - alpha_bar_t / alpha_bar_s for s <= t: beta_t of the paper where s = t - 1."""
        return -jnp.expm1(self.log_ratio(t, s))

    def place_of(self, share: Float[ArrayLike, "*shares"]) -> Float[Array, "*shares"]:
        """Returns where in [0, 1] of 0..T noise has a share sigma / (signal + sigma) of x_t."""
        place = np.linspace(0, 1, self.num_steps + 1, dtype=np.float32)
        return jnp.interp(jnp.asarray(share), self._tables["share"], place)

    def levels(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns signal and sigma of integer times on the host, float64."""
        alpha_bar = self.alpha_bar[np.asarray(times)]
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)

    def guidance_level(self, times: np.ndarray) -> np.ndarray:
        """Returns what the bounds of guidance's interval are compared with, float64.

        The noise level sqrt((1 - ab)/ab), sigma of a process that keeps the signal.
        """
        alpha_bar = self.alpha_bar[np.asarray(times)]
        return np.sqrt((1 - alpha_bar) / alpha_bar)

    @functools.cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        signal = np.sqrt(self.alpha_bar)
        variance = 1 - self.alpha_bar
        log = np.log(self.alpha_bar)
        with np.errstate(divide="ignore"):
            snr = self.alpha_bar / variance
        tables = {
            "alpha_bar": self.alpha_bar,
            "signal": signal,
            "variance": variance,
            "sigma": np.sqrt(variance),
            "gain": signal * (1 - signal),
            "share": np.sqrt(variance) / (signal + np.sqrt(variance)),
            "snr": snr,
            "log_high": log,
            "log_low": log - log.astype(np.float32),
        }
        return {name: table.astype(np.float32) for name, table in tables.items()}


def at_time(table: Float[np.ndarray, "entries"], t: Times) -> At:
    """Returns float32 table[t] for integers t of any shape; NaN for a time outside the table."""
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(f"time of dtype {t.dtype}: a schedule is indexed by integers 0..T")
    return (
        jnp.asarray(table, jnp.float32)
        .at[t]
        .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    )


# First and last beta for T = 1000.
PUBLISHED_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}


def make_schedule(
    name: ScheduleName, num_steps: int, betas: tuple[float, float] | None = None
) -> Schedule:
    """Returns the named schedule with T = num_steps >= 2.

    cosine: Nichol and Dhariwal 2021 (eq. 17), offset 0.008. linear: Ho et al. 2020, beta from 1e-4
    to 0.02. scaled_linear: Stable Diffusion, sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012).
    The two linear ones are defined for T = 1000; for another T their betas are scaled by 1000 / T,
    which nearly keeps alpha_bar as a function of t / T. No beta exceeds 0.999. betas: other first
    and last ones for T = 1000, which cosine has not.
    """
    if name not in get_args(ScheduleName):
        raise ValueError(f"schedule {name!r}: must be one of {', '.join(get_args(ScheduleName))}")
    if num_steps < 2:
        raise ValueError(f"num_steps = {num_steps}: must be at least 2")
    if name == "cosine":
        angle = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2
        level = np.cos(angle) ** 2
        betas = 1 - level[1:] / level[:-1]
    else:
        start, end = betas or PUBLISHED_BETAS[name]
        power = 1 if name == "linear" else 2
        roots = np.linspace(start ** (1 / power), end ** (1 / power), num_steps)
        betas = roots**power * (1000 / num_steps)
    return schedule_from_betas(name, np.minimum(betas, _MAX_BETA))


def schedule_from_betas(name: str, betas: np.ndarray) -> Schedule:
    """Returns the schedule with alpha_bar_t = prod_{i <= t} (1 - beta_i), beta_1..beta_T given."""
    alphas = 1 - np.asarray(betas, dtype=np.float64)
    return Schedule(name, np.concatenate([[1.0], np.cumprod(alphas)]))


def sampling_timesteps(
    num_train: int,
    num_sample: int,
    spacing: Spacing = "trailing",
    *,
    offset: int = 0,
    skip_last: bool = False,
    final: int = 0,
) -> np.ndarray:
    """Returns the times a sampler visits: int32 (num_sample + 1,), strictly falling to `final`.

    Table 2 of Lin et al. 2023 (arXiv 2305.08891) with T = num_train. trailing starts at T;
    leading has the step floor(T / num_sample) and starts below T; linspace visits T and 1.

    offset: added to the times of leading, diffusers' steps_offset (Stable Diffusion: 1).
    skip_last: takes the times of num_sample + 1 steps without the last, which diffusers does for
      DPM-Solver++ with leading and linspace.
    final: the last time; Stable Diffusion stops at 1, diffusers' set_alpha_to_one=False.

    Raises ValueError where num_sample is not in 1..T or the times do not fall strictly in T..final.
    """
    if not 1 <= num_sample <= num_train:
        raise ValueError(f"num_sample = {num_sample}: must be in 1..{num_train}")
    if offset and spacing != "leading":
        raise ValueError(f"offset = {offset}: only read with spacing leading, not {spacing}")
    if skip_last and spacing == "trailing":
        raise ValueError("skip_last = True: only read with spacing leading or linspace")
    count = num_sample + skip_last
    if spacing == "trailing":
        times = np.round(np.arange(num_train, 0, -num_train / num_sample)[:num_sample])
    elif spacing == "leading":
        times = 1 + offset + np.arange(count)[::-1] * (num_train // count)
    elif spacing == "linspace":
        times = 1 + np.round(np.linspace(num_train - 1, 0, count))
    else:
        raise ValueError(f"spacing {spacing!r}: must be one of {', '.join(get_args(Spacing))}")
    times = np.append(times[:num_sample], final).astype(np.int32)
    if times[0] > num_train or final < 0 or not np.all(np.diff(times) < 0):
        raise ValueError(
            f"timesteps {times[0]}..{times[-2]}, {times[-1]} (spacing {spacing}, offset {offset}, "
            f"final {final}): must fall strictly within {num_train}..0"
        )
    return times


def expand(a: Shaped[ArrayLike, "..."], like: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """Appends axes to a, so that (B,) broadcasts over (B, ...); a scalar stays one."""
    a = jnp.asarray(a)
    return a.reshape(a.shape + (1,) * (jnp.ndim(like) - a.ndim)) if a.ndim else a

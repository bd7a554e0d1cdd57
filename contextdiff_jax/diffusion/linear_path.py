"""The linear path of flow matching: x_t = (1 - t) x0 + t eps, at times on a grid.

It answers what `schedules.Schedule` answers, so that steps, solvers and samplers serve both; but
signal + sigma = 1 here, where a schedule has signal^2 + sigma^2 = 1. Its times are integers k in
0..T, too: t is k / T, or shifted (Esser et al. 2024, arXiv 2403.03206, section 5.3.2)

    t = shift (k / T) / (1 + (shift - 1) k / T)

so that a shift above 1 spends more of training and of a sampler's steps at the noisy end, as
larger pictures need it. Networks are told k.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.schedules import at_time


@dataclasses.dataclass(frozen=True)
class LinearPath:
    """num_steps: T, at least 2. shift: above 0; 1 leaves t = k / T.

    The methods take integer times of any shape and return float32 of that shape: NaN outside 0..T.
    """

    num_steps: int
    shift: float = 1.0

    def __post_init__(self):
        if self.num_steps < 2:
            raise ValueError(f"num_steps = {self.num_steps}: must be at least 2")
        if not 0 < self.shift < np.inf:
            raise ValueError(f"shift = {self.shift}: must be above 0")

    @property
    def name(self) -> str:
        """For messages."""
        return f"linear path, shift {self.shift:g}"

    def described(self) -> tuple[str, int, float]:
        """Returns what tells it from others; repr tells it."""
        return "linear path", self.num_steps, self.shift

    def signal(self, t: jax.Array) -> jax.Array:
        """1 - t, the factor of x0."""
        return at_time(self._tables["signal"], t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """t in [0, 1], the factor of the noise: the time of the formulas."""
        return at_time(self._tables["sigma"], t)

    def variance(self, t: jax.Array) -> jax.Array:
        """The variance of x_t given x0."""
        return at_time(self._tables["variance"], t)

    def gain(self, t: jax.Array) -> jax.Array:
        """t (1 - t), the factor of a relation r in x_t."""
        return at_time(self._tables["gain"], t)

    def log_ratio(self, t: jax.Array, s: jax.Array) -> jax.Array:
        """log of the square of signal_t / signal_s, s <= t; minus infinity at t = T."""
        return at_time(self._tables["log"], t) - at_time(self._tables["log"], s)

    def beta(self, t: jax.Array, s: jax.Array) -> jax.Array:
        """The variance that noise adds from s to t: sigma_t^2 - (signal_t/signal_s sigma_s)^2."""
        return self.variance(t) - jnp.exp(self.log_ratio(t, s)) * self.variance(s)

    def levels(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns signal and sigma of integer times on the host, float64."""
        place = np.asarray(times) / self.num_steps
        t = self.shift * place / (1 + (self.shift - 1) * place)
        return 1 - t, t

    def places(self, t: np.ndarray) -> np.ndarray:
        """Returns the k, fractions too, of times t in [0, 1] on the host: float64."""
        return self.num_steps * t / (self.shift - (self.shift - 1) * np.asarray(t))

    def place_of(self, share: jax.Array) -> jax.Array:
        """Returns where in [0, 1] of 0..T noise has a share of x_t, before the shift."""
        return share

    def pace(self, t: jax.Array) -> jax.Array:
        """dk / dt: by how much faster than its t an integer time k goes there."""
        return at_time(self._tables["pace"], t)

    def guidance_level(self, times: np.ndarray) -> np.ndarray:
        """Returns what the bounds of guidance's interval are compared with: t, float64."""
        return self.levels(times)[1]

    @functools.cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        signal, sigma = self.levels(np.arange(self.num_steps + 1))
        with np.errstate(divide="ignore"):
            log = 2 * np.log(signal)
        tables = {
            "signal": signal,
            "sigma": sigma,
            "variance": sigma**2,
            "gain": signal * sigma,
            "log": log,
            "pace": self.num_steps * self.shift / (self.shift * signal + sigma) ** 2,
        }
        return {name: table.astype(np.float32) for name, table in tables.items()}

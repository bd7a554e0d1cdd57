"""Gaussian data with a linear adapter, for which the best denoiser has a closed form."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.schedules import Schedule, expand


@dataclasses.dataclass(frozen=True)
class GaussianData:
    """x0 ~ N(mean, std^2) per value, adapter r = phi x0; E[x0 | x_t] in a prediction space."""

    schedule: Schedule
    kind: str = "x0"
    mean: float = 0.3
    std: float = 0.5
    phi: float = 0.8

    def denoise(self, x, t, keep):
        signal, variance, factor = (expand(a[t.astype(jnp.int32)], x) for a in self._tables())
        x0 = self.mean + factor * self.std**2 / (factor**2 * self.std**2 + variance) * (
            x - factor * self.mean
        )
        eps = (x - signal * x0) / jnp.sqrt(variance)
        return {"x0": x0, "eps": eps, "v": signal * eps - jnp.sqrt(variance) * x0}[self.kind]

    def relation(self, x0_hat, times):
        return tuple(self.phi * x0_hat for _ in times)

    def standardised_to_data(self, z):
        """The probability flow of Gaussian marginals keeps (x - mean_t) / std_t."""
        return self.mean + self.std * z

    def _tables(self):
        root = np.sqrt(self.schedule.alpha_bar)
        factor = root + root * (1 - root) * self.phi
        return (jnp.asarray(a, jnp.float32) for a in (root, 1 - root**2, factor))

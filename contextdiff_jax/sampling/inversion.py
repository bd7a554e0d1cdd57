"""DDIM inversion: from data up to the noise that the deterministic sampler maps back to it.

Each step from s to t > s reads the step of eq. 11 backwards. The denoiser sees x_s with the time t
of the level it goes to, as in diffusers' DDIMInverseScheduler (it knows no time 0). Its prediction
is then read at the level of x_s, which gives x0_hat and the noise. From s = 0 that is not possible
for every kind of prediction: there x0_hat is the data itself, and the noise is the prediction's
eps' at t less the bias it contains, b_t / sigma_t.

The adapter receives x0_hat (the data itself in the first step) and the condition of the data that
is inverted; one call serves both times. Guidance is not used in inversion, because the guided step
is far from invertible.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from contextdiff_jax.diffusion.process import Denoise, Process, checked_prediction
from contextdiff_jax.diffusion.shapes import Array, Data
from contextdiff_jax.sampling.guidance import Controlled


def invert(
    process: Process,
    denoise: Denoise,
    x0: Data,
    timesteps: np.ndarray,
    *,
    return_path: bool = False,
) -> Float[Array, "..."]:
    """Returns the state at the first (largest) time for data x0 (B, ...), float32 like x0.

    process, denoise: as for `loop.sample`; keep is True throughout.
    timesteps: those of the sampler that is to return to x0, `SamplerConfig.timesteps(schedule)`:
        x0 is taken to be at the last of them.
    return_path: return the states at all timesteps instead, (n + 1, B, ...), in their order.

    Raises ValueError where the times do not fall strictly within T..0, or for a shape that does
    not fit.
    """

    def unobserved(x, t, keep):
        return denoise(x, t, keep), ()

    if return_path:
        return observed_inversion(process, unobserved, x0, timesteps)[0]
    return _scan(process, unobserved, x0, timesteps, lambda x, _: None)[0]


def observed_inversion(
    process: Process, denoise: Controlled, x0: Data, timesteps: np.ndarray
) -> tuple[Float[Array, "states batch *data"], Any]:
    """Returns the path of `invert` and what the denoiser observes at every step, (n, ...).

    denoise: (x, t, keep) -> (prediction, a tree of arrays). The entry j of what is observed belongs
    to the step from timesteps[j], which a sampler takes with the same t.
    """
    last, (path, observed) = _scan(process, denoise, x0, timesteps, lambda x, seen: (x, seen))
    del last
    path = jnp.concatenate([path[::-1], x0.astype(jnp.float32)[None]])
    return path, jax.tree.map(lambda leaf: leaf[::-1], observed)


def _scan(
    process: Process, denoise: Controlled, x0: jax.Array, timesteps: np.ndarray, collect: Any
) -> tuple[jax.Array, Any]:
    """Returns the last state, and collect(state, observed) of every step."""
    schedule = process.schedule
    timesteps = np.asarray(timesteps)
    if timesteps[0] > schedule.num_steps or timesteps[-1] < 0 or np.any(np.diff(timesteps) >= 0):
        raise ValueError(
            f"timesteps {timesteps.tolist()}: must fall strictly within {schedule.num_steps}..0"
        )
    x0 = x0.astype(jnp.float32)
    rising = jnp.asarray(timesteps[::-1].copy())
    keep = jnp.ones(x0.shape[:1], bool)

    def body(x_s, times):
        s, t = times
        predicted, seen = denoise(x_s, jnp.full(x_s.shape[:1], t, jnp.float32), keep)
        x_t = process.raised(checked_prediction(predicted, x_s), x_s, s, t)
        return x_t, collect(x_t, seen)

    return jax.lax.scan(body, x0, (rising[:-1], rising[1:]))

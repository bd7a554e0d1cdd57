"""The exact discrete bound of given images (ContextDiff, eq. 4), term by term, in bits/dimension.

    -log2 p(x0 | c) / D  <=  L_T + sum of the KLs + L_0

with L_T including the bias b_T, the KLs those of eq. 3 under x0 and x0_hat, each with its own
biases, and L_0 the probability of the 8-bit values. One noise per term makes each an unbiased
estimate; guided-diffusion's calc_bpd_loop does the same for the unbiased process.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion import bound
from contextdiff_jax.diffusion.bound_step import Drawn, bound_step
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.process import Denoise, Process
from contextdiff_jax.diffusion.schedules import Schedule, sampling_timesteps
from contextdiff_jax.sampling.noise import step_noise


@dataclasses.dataclass(frozen=True)
class BoundTerms:
    """The bound of B images, float32, in bits per dimension.

    prior (B,): L_T. terms (B, N): one per time visited, in falling order: the KLs, and at last L_0.
    x0_mse (B, N): mean squared error of x0_hat at these times.
    """

    prior: jax.Array
    terms: jax.Array
    x0_mse: jax.Array


jax.tree_util.register_dataclass(BoundTerms)


def visited_times(schedule: Schedule, num_terms: int = 0) -> np.ndarray:
    """Returns the times of a bound with that many terms (0: all T): int32 (N + 1,), from T to 0.

    Fewer times are evenly spaced and keep both T and 1. They are a process of their own with an
    exact bound of its own, a looser one; not an estimate of the bound of all T.
    """
    if num_terms and not 2 <= num_terms <= schedule.num_steps:
        raise ValueError(
            f"num_terms = {num_terms}: must be 0 for all, or in 2..{schedule.num_steps}"
        )
    return sampling_timesteps(schedule.num_steps, num_terms or schedule.num_steps, "linspace")


def bound_terms(
    process: Process,
    denoise: Denoise,
    x0: jax.Array,
    keys: jax.Array,
    *,
    times: np.ndarray | None = None,
    clip: bool = True,
) -> BoundTerms:
    """Returns the terms for x0 (B, ...): 8-bit values mapped by v / 127.5 - 1.

    Pure, one `lax.scan`: jit a function that takes parameters and calls it. process, denoise: as
    `sampling.loop.sample` takes them; the condition is always kept.
    keys: (B,) from `sample_keys`; an image's noise depends on its key and the time alone.
    times: from `visited_times`; all if None. clip: limit x0_hat to [-1, 1], as guided-diffusion.

    Raises ValueError for times that do not fit.
    """
    schedule = process.schedule
    times = _checked(schedule, times)
    std = bound.decoder_std(schedule, before=int(times[-3]), last=int(times[-2]))
    keep = jnp.ones(x0.shape[:1], bool)

    def visit(bias_t, step):
        t, s = step
        (bias_s,) = process.biases(x0, s)
        noise = step_noise(keys, t, x0.shape[1:])
        drawn = Drawn(Biased(x0, bias_t, bias_s), t, s, noise, keep)
        made = bound_step(process, denoise, drawn, clip=clip, std=std)
        error = jnp.mean(jnp.square(x0 - made.x0_hat), axis=tuple(range(1, x0.ndim)))
        return bias_s, (bound.bits_per_dim(made.nats, x0[0].size), error)

    (bias_last,) = process.biases(x0, jnp.int32(schedule.num_steps))
    steps = (jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
    _, (terms, errors) = jax.lax.scan(visit, bias_last, steps)
    prior = bound.bits_per_dim(bound.prior_kl(schedule, x0, bias_last), x0[0].size)
    return BoundTerms(prior, terms.T, errors.T)


def _checked(schedule: Schedule, times: np.ndarray | None) -> np.ndarray:
    times = visited_times(schedule) if times is None else np.asarray(times)
    if len(times) < 3 or times[0] != schedule.num_steps or times[-1] or np.any(np.diff(times) >= 0):
        raise ValueError(
            f"times {times.tolist()}: must fall from {schedule.num_steps} to 0 with at least one "
            "between"
        )
    return times

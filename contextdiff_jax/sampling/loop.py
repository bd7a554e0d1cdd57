"""The sampler loop: a whole run is one `lax.scan`, to be compiled as one program.

A step at t: the denoiser's guided estimate x0_hat, its threshold, the bias at t and at the next
time s from ONE call of the relation on x0_hat with the true condition, then the step to s.

x_T is drawn from N(0, I): its bias would need an estimate of x0 from nothing. k_T is of the size of
the signal left at T (1e-4 for 1000 cosine steps, 0.06 for Stable Diffusion's), ignored as well.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from contextdiff_jax.diffusion.process import Denoise, Process
from contextdiff_jax.diffusion.shapes import Array
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.control import Control, Free
from contextdiff_jax.sampling.guidance import guided_x0, inside_interval
from contextdiff_jax.sampling.noise import step_noise
from contextdiff_jax.sampling.stepper import Stepper, make_stepper


def sample(
    process: Process,
    denoise: Denoise,
    keys: Key[Array, "batch"] | None,
    shape: tuple[int, ...],
    sampler: SamplerConfig,
    *,
    x_init: Float[Array, "batch ..."] | None = None,
    skipped: int = 0,
    control: Control | None = None,
) -> Float[Array, "batch ..."]:
    """Draws samples, float32 (B, *shape). Pure: jit a function that takes parameters and calls it.

    process, denoise: see `diffusion.process`. Under guidance the denoiser's batch is doubled, see
        `guidance`.
    keys: (B,) from `sample_keys`; may be None where x_init is given and the sampler adds no noise.
    shape: of one sample, e.g. (H, W, C).
    x_init: (B, *shape), the state at the first time, e.g. from `inversion.invert`; drawn if None.
    skipped: steps left out at the beginning, fewer than there are; x_init is then of a later time.
    control: what rides along and may change the run; None changes nothing.

    Raises ValueError for a sampler or shape that does not fit.
    """
    sampler.validate("sampler")
    if process.bounds is None and sampler.threshold != "none":
        raise ValueError(
            f"sampler.threshold = {sampler.threshold!r}: must be 'none', x0 has no bounds here"
        )
    stepper = make_stepper(process, sampler, skipped)
    control = control or Free()
    x = _initial_state(keys, shape, x_init, sampler.name, stepper)
    numbers = jnp.arange(1, len(stepper.timesteps))
    times = jnp.asarray(stepper.timesteps[:-1]), jnp.asarray(stepper.timesteps[1:])
    guided = inside_interval(process.schedule, sampler, stepper.timesteps[:-1])

    def one_step(carry, step):
        x, carried, state = carry
        number, (t, s), guide, inputs = step

        def predict(x, t, keep):
            told = jnp.stack([t, jnp.full_like(t, s)], axis=1) if sampler.aims else t
            return control.predict(denoise, x, told, keep, state)

        x0_hat, state = guided_x0(process, predict, x, t, sampler, guide)
        noise = step_noise(keys, number, shape) if stepper.adds_noise else None
        x, carried = stepper.update(x, x0_hat, carried, inputs, noise)
        x, state = control.after(x, number, s, state)
        return (x, carried, state), None

    start = (x, stepper.init(x), control.init(x))
    steps = (numbers, times, guided, stepper.inputs)
    return jax.lax.scan(one_step, start, steps)[0][0]


def _initial_state(keys, shape, x_init, name: str, stepper: Stepper) -> jax.Array:
    if keys is None and (x_init is None or stepper.adds_noise):
        raise ValueError(f"keys = None: sampler {name} needs keys to draw noise")
    if x_init is None:
        return step_noise(keys, 0, shape)
    if x_init.shape[1:] != tuple(shape):
        raise ValueError(f"x_init of shape {x_init.shape}: must be (B, *{tuple(shape)})")
    return x_init.astype(jnp.float32)

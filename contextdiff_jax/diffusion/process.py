"""The process of the paper as one value: schedule, what the network predicts, and the relation.

A denoiser is a function beside it: denoise(x, t, keep) -> prediction like x (B, ...), with t
float32 (B,) in 1..T (or (B, 2), see `flow`) and keep bool (B,), False where the condition must be
hidden; where there are several, keep may be {name: bool (B,)}. Nothing here reads it.
A relation(x0, times) -> one r(x0, c, t) like x0 (B, ...) per time, each float32 (B,) in 1..T; it
closes over the true condition, and one encoding of x0 serves all times.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion import marginals, predictions, steps
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.predictions import PredictionKind
from contextdiff_jax.diffusion.schedules import Schedule, expand
from contextdiff_jax.diffusion.shapes import Bias, Data, Time, Told

Keep = jax.Array | Mapping[str, jax.Array]
Denoise = Callable[[jax.Array, jax.Array, Keep], jax.Array]
Relation = Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Process:
    """x_t = sqrt(ab_t) x0 + b_t + sqrt(1 - ab_t) eps with b_t = k_t r(x0, c, t) (eq. 1).

    prediction: what its denoisers predict. relation: None is plain diffusion, to the last digit.
    bounds: the least and the largest value of x0; None where it has none (latents).
    Raises ValueError for an unknown kind of prediction.
    """

    schedule: Schedule
    prediction: PredictionKind
    relation: Relation | None = None
    bounds: tuple[float, float] | None = (-1.0, 1.0)

    def __post_init__(self):
        predictions.check_kind(self.prediction)

    @property
    def num_steps(self) -> int:
        """T."""
        return self.schedule.num_steps

    def bounded(self, x0: Data) -> Data:
        """Returns an estimate of x0 within its bounds, or as it is where there are none."""
        return x0 if self.bounds is None else jnp.clip(x0, *self.bounds)

    def changed(self, x0_hat: Data, t: Time, change: Callable[[jax.Array], jax.Array]) -> Data:
        """Returns the estimate of x0 at t (() or (B,)) after a change, as a threshold makes it."""
        return change(x0_hat)

    def biases(self, x0: Data, *times: Time) -> tuple[Bias, ...]:
        """Returns b at each of the times, like x0 (B, ...), or zeros without a relation.

        times: integers, each () or (B,).
        The adapter knows the times 1..T. At 0 it is asked for time 1, and k_0 = 0 makes the bias 0.
        Raises ValueError where the relation does not return one r like x0 per time.
        """
        if self.relation is None:
            return tuple(0.0 for _ in times)
        asked = tuple(jnp.full(x0.shape[:1], jnp.maximum(time, 1), jnp.float32) for time in times)
        relations = self.relation(x0, asked)
        if len(relations) != len(times) or any(r.shape != x0.shape for r in relations):
            raise ValueError(
                f"the relation returned shapes {[r.shape for r in relations]} for {len(times)} "
                f"times and an estimate of shape {x0.shape}: it must return one like it per time"
            )
        return tuple(
            expand(self.schedule.gain(time), r) * r.astype(jnp.float32)
            for time, r in zip(times, relations, strict=True)
        )

    def biased(self, x0: Data, t: Time, s: Time) -> Biased:
        """Returns x0, true or estimated, with its biases at t and s, from one call."""
        return Biased(x0, *self.biases(x0, t, s))

    def diffuse(self, x0: Data, bias_t: Bias, t: Time, noise: Data) -> Data:
        """Draws x_t (eq. 1) from N(0, I) noise like x0, with the bias of x0 at t."""
        return marginals.diffuse(self.schedule, x0, bias_t, t, noise)

    @staticmethod
    def predict(denoise: Denoise, x: Data, t: Told, keep: Keep) -> Data:
        """Returns the denoiser's prediction in float32 for x (B, ...), t () or (B,) in 1..T."""
        return checked_prediction(denoise(x, jnp.full(x.shape[:1], t, jnp.float32), keep), x)

    def target(self, x0: Data, x_t: Data, t: Time) -> Data:
        """Returns what the denoiser should predict at (x_t, t)."""
        return predictions.target(self.prediction, self.schedule, x0, x_t, t)

    def x0_of(self, predicted: Data, x_t: Data, t: Time) -> Data:
        """Returns the estimate of x0 that a prediction at (x_t, t) stands for."""
        return predictions.to_x0(self.prediction, self.schedule, predicted, x_t, t)

    def eps_of(self, predicted: Data, x_t: Data, t: Time) -> Data:
        """Returns the estimate of eps' (which contains the bias) that a prediction stands for."""
        return predictions.to_eps(self.prediction, self.schedule, predicted, x_t, t)

    def step(
        self,
        x_t: Data,
        x0_hat: Data,
        t: Time,
        s: Time,
        *,
        eta: float,
        noise: Data | None,
    ) -> Data:
        """Returns x_s for s < t from an estimate and its biases; see `steps.step`."""
        estimate = self.biased(x0_hat, t, s)
        return steps.step(self.schedule, x_t, estimate, t, s, eta=eta, noise=noise)

    def raised(self, predicted: Data, x_s: Data, s: Time, t: Time) -> Data:
        """Returns x_t for t > s: the deterministic step read backwards, see `inversion`.

        predicted: the denoiser's for x_s (B, ...), told the time t.
        """
        x0_hat = jnp.where(s == 0, x_s, self.x0_of(predicted, x_s, s))
        bias_s, bias_t = self.biases(x0_hat, s, t)
        noise_at_zero = self.eps_of(predicted, x_s, t) - bias_t / self.schedule.sigma(t)
        estimate = Biased(x0_hat, bias_t, bias_s)
        return steps.inversion_step(self.schedule, x_s, estimate, t, s, noise_at_zero=noise_at_zero)


def checked_prediction(prediction: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a denoiser's prediction in float32; ValueError unless its shape is that of x."""
    if prediction.shape != x.shape:
        raise ValueError(
            f"the denoiser returned shape {prediction.shape} for x of shape {x.shape}: "
            "they must agree"
        )
    return prediction.astype(jnp.float32)

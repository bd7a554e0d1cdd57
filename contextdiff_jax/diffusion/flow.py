"""Flow matching (Lipman et al. 2022) on the linear path, with a relation r(x0, c) (docs/flow.md).

For r independent of the time, t in [0, 1], all arrays like x0 (B, ...):

    x_t = (1 - t) x0 + t (1 - t) r + t eps
    u   = d x_t / dt = eps - x0 + (1 - 2 t) r            what a network learns: v = E[u | x_t]
    x_t - t u = x0 + t^2 r

So x_t - t v, where a straight line from x_t would land at t = 0, takes the place of x0_hat in
every sampler, and a plain sampler is exact whatever r is: x_t goes along dx = v dt. It needs no r.
Only limits on x0_hat itself and ancestral steps do, and there an affine r gives x0 of the landing.

The noise may be coupled with x0 instead: z(x0, c, eps) for eps, u = z - x0, x_t - t u = x0.

A network may learn the mean velocity over a step from t to s instead (MeanFlow, Geng et al. 2025),

    m(x_t, s, t) = 1 / (t - s)  integral of v(x_tau, tau) over s..t,        m(x_t, t, t) = v
    m = v - (t - s) d m / dt,   d / dt along the flow: v d/dx + d/dt        so that
    x_s = x_t - (t - s) m(x_t, s, t)                    whatever the length of the step

It is told both times; told one alone, s is t.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from contextdiff_jax.diffusion import steps
from contextdiff_jax.diffusion.marginals import Biased
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.relations import Affine
from contextdiff_jax.diffusion.schedules import expand
from contextdiff_jax.diffusion.shapes import Bias, Data, Time

# (x0, eps) -> (z like them, KL(z || N(0, I)) per value, ()).
Couple = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

_LEAST_TIME = 0.05  # that the error of x0 is divided by, where a network predicts x0


@dataclasses.dataclass(frozen=True)
class FlowProcess(Process):
    """A Process whose schedule is a `LinearPath` and whose "x0_hat" is the landing x_t - t v.

    prediction: v, here the velocity; or x0, here the landing. context: the relation r; None for
    none. couple: what the noise is made of in training, in the place of a relation.
    mean_velocities: whether the network's are means over steps. guided: whether it has learned
    guidance. `relation`, the paper's r(x0, c, t), must be None: no sampler needs a bias here.
    """

    context: Affine | None = None
    couple: Couple | None = None
    mean_velocities: bool = False
    guided: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.relation is not None:
            raise ValueError(
                "relation: must be None on the linear path, and an r(x0, c) be given as context: "
                "kinetic energy rewards an r that depends on the time where it makes the velocity "
                "hard to learn"
            )
        if self.prediction == "eps":
            raise ValueError(
                "prediction 'eps': must be 'v' or 'x0' on the linear path, at whose end the noise "
                "tells nothing of x0"
            )

    @property
    def ancestral(self) -> bool:
        """Whether x_t given x0 is noise around a known mean, as ancestral steps need it."""
        return self.couple is None

    def between(self, x0: Data, noise: Data, t: Time) -> tuple[Data, Data, Bias]:
        """Returns x_t, u and r for noise (or z) like x0; t: integers (B,)."""
        time, signal = (expand(f(t), x0) for f in (self.schedule.sigma, self.schedule.signal))
        if self.context is None:
            return signal * x0 + time * noise, noise - x0, 0.0
        r = self.context(x0)
        x_t = signal * x0 + time * signal * r + time * noise
        return x_t, noise - x0 + (1 - 2 * time) * r, r

    def error_of(self, predicted: Data, x_t: Data, u: Data, t: Time) -> Data:
        """Returns by how much the velocity of a prediction at (x_t, t) misses u, to learn by.

        Of a predicted landing it is less where t < 0.05: that error over t would make these times
        nearly all of the loss.
        """
        if self.prediction == "v":
            return predicted - u
        time = expand(self.schedule.sigma(t), x_t)
        return (x_t - time * u - predicted) / jnp.maximum(time, _LEAST_TIME)

    def x0_of(self, predicted: Data, x_t: Data, t: Time) -> Data:
        """Returns the landing x_t - t v."""
        if self.prediction == "x0":
            return predicted
        return x_t - expand(self.schedule.sigma(t), x_t) * predicted

    def eps_of(self, predicted: Data, x_t: Data, t: Time) -> Data:
        """Returns where a straight line from x_t would be at t = 1: x_t + (1 - t) v. t >= 1."""
        landing = self.x0_of(predicted, x_t, t)
        return landing + (x_t - landing) / expand(self.schedule.sigma(t), x_t)

    def target(self, x0: Data, x_t: Data, t: Time) -> Data:
        """Returns the prediction at (x_t, t) that stands for the landing x0. t >= 1."""
        if self.prediction == "x0":
            return x0
        return (x_t - x0) / expand(self.schedule.sigma(t), x_t)

    def changed(self, x0_hat: Data, t: Time, change: Callable[[jax.Array], jax.Array]) -> Data:
        """Returns the landing after a change of the estimate of x0 that it holds."""
        if self.context is None:
            return change(x0_hat)
        time = expand(self.schedule.sigma(t), x0_hat)
        before = self.context.x0_of(x0_hat, time)
        after = change(before)
        # What is not changed stays, also in a mode that x0 can hardly be told from.
        r_before, r_after = self.context(before), self.context(after)
        return x0_hat + after - before + jnp.square(time) * (r_after - r_before)

    def step(
        self, x_t: Data, x0_hat: Data, t: Time, s: Time, *, eta: float, noise: Data | None
    ) -> Data:
        """Returns x_s for s < t from a landing: Euler's step for eta 0, else see `steps.step`.

        With a relation a step that adds noise needs x0 and r(x0) of the landing. It is a posterior
        of x_t ~ N((1 - t) x0 + t (1 - t) r(x0), t^2), up to how `Affine.x0_of` limits a mode.
        """
        if self.context is None or eta == 0:
            return super().step(x_t, x0_hat, t, s, eta=eta, noise=noise)
        x0 = self.context.x0_of(x0_hat, expand(self.schedule.sigma(t), x0_hat))
        r = self.context(x0)
        estimate = Biased(x0, *(expand(self.schedule.gain(time), r) * r for time in (t, s)))
        return steps.step(self.schedule, x_t, estimate, t, s, eta=eta, noise=noise)

    def raised(self, predicted: Data, x_s: Data, s: Time, t: Time) -> Data:
        """Returns x_t for t > s along the velocity; predicted: at x_s, told the time t."""
        time, before = (expand(self.schedule.sigma(each), x_s) for each in (t, s))
        return x_s + (time - before) * self.velocity(predicted, x_s, time)

    def velocity(self, predicted: Data, x: Data, time: jax.Array) -> Data:
        """Returns the velocity at x that a prediction stands for; time: t above 0, () or like x."""
        return predicted if self.prediction == "v" else (x - predicted) / time

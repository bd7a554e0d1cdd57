"""PLMS (Liu et al. 2022, arXiv 2202.09778): linear multistep of fourth order, for plain diffusion.

Published Stable Diffusion was drawn with it (PNDM without Runge-Kutta steps). The network's outputs
of up to four times are mixed, and DDIM's step is taken with the mixture. The first step is taken
twice: with the output at its start, then anew with the mean of that and the output where it ended.
So n steps cost n + 1 calls. Where guidance begins or ends, mixing begins anew. The outputs are
mixed as what the network predicts, as in diffusers.

There is no form of it for the biased process: outputs of several times would be mixed, each with a
bias of its own time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.predictions import to_x0
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.shapes import Data

_KEPT = 3  # outputs of earlier times
# Factors of an output and of those before it, by how many there are.
_ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12))
_FOURTH = (55 / 24, -59 / 24, 37 / 24, -9 / 24)


@dataclasses.dataclass(frozen=True)
class PLMS:
    """times: int32 (n + 1,), falling, of the n steps. The process is plain.

    alike: int (n + 1,), see `guidance.steps_alike`.

    timesteps: int32 (n + 2,), those at which the network is called; the second twice.
    """

    process: Process
    times: np.ndarray
    alike: np.ndarray

    adds_noise = False

    @property
    def timesteps(self) -> np.ndarray:
        """The times of the calls, and the last one."""
        return self.times if len(self.times) == 2 else np.insert(self.times, 1, self.times[1])

    @property
    def inputs(self) -> dict[str, jax.Array]:
        """What each call reads beside the state, (calls, ...) each.

        t, s: the step taken; at: the time of the output; factors (calls, 4): of this output and
        those before it; again: whether the first step is taken anew.
        """
        at = self.timesteps[:-1]
        again = np.arange(len(at)) == 1
        number = np.arange(len(at)) - (np.arange(len(at)) >= 1)  # of the step, from 0
        factors = np.zeros((len(at), _KEPT + 1), np.float32)
        for call, row in enumerate(factors):
            found = self._second if call == 1 else _factors(self.alike[number[call]])
            row[: len(found)] = found
        arrays = {"t": self.times[number], "s": self.times[number + 1], "at": at}
        arrays |= {"factors": factors, "again": again}
        return {name: jnp.asarray(array) for name, array in arrays.items()}

    @property
    def _second(self) -> tuple[float, float]:
        """Factors of the call that takes the first step anew: of its output and of the first."""
        return (0, 1) if self.alike[1] == 0 else (1 / 2, 1 / 2)

    def init(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the outputs kept, none yet, and where the first step starts."""
        return jnp.zeros((_KEPT, *x.shape), jnp.float32), x

    def update(
        self,
        x: Data,
        x0_hat: Data,
        carried: tuple[jax.Array, jax.Array],
        inputs: dict[str, jax.Array],
        noise: None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Returns x at s, and what the next call mixes."""
        (kept, start), again = carried, inputs["again"]
        # The network's output that the estimate stands for.
        output = self.process.target(x0_hat, x, inputs["at"])
        # A sum, not a matrix product: accelerators would round its factors.
        mixed = sum(f * each for f, each in zip(inputs["factors"], (output, *kept), strict=True))
        origin = jnp.where(again, start, x)
        process, t = self.process, inputs["t"]
        estimate = to_x0(process.prediction, process.schedule, mixed, origin, t)
        x = process.step(origin, estimate, t, inputs["s"], eta=0.0, noise=None)
        # The output of the first step's second half is not kept.
        kept = jnp.where(again, kept, jnp.concatenate([output[None], kept[:-1]]))
        return x, (kept, start)


def _factors(earlier: int) -> tuple[float, ...]:
    return _ADAMS_BASHFORTH[earlier] if earlier < _KEPT else _FOURTH

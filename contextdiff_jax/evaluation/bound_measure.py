"""Bits per dimension by the exact discrete bound: how `bits_per_dim` measures kind vp."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from contextdiff_jax.diffusion.process import Denoise, Process
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.evaluation.bound_rows import Rows, shown_error, summary
from contextdiff_jax.evaluation.bound_terms import BoundTerms, bound_terms
from contextdiff_jax.evaluation.results import Result, Table


@dataclasses.dataclass(frozen=True)
class BoundMeasure:
    """times: from `visited_times`. clip: limit x0_hat to [-1, 1]."""

    schedule: Schedule
    times: np.ndarray
    clip: bool

    rows: ClassVar[type[Rows]] = Rows
    what: ClassVar[str] = "the bound"

    @property
    def _count(self) -> int:
        return len(self.times) - 1

    @property
    def cost(self) -> str:
        """For the log: how often an image calls the networks."""
        return f"at {self._count} times"

    def protocol(self) -> dict[str, Any]:
        """Returns what the numbers depend on beside the stage, the data and the seed."""
        return {
            "bound": "discrete, 8 bits per channel, L_T with the bias b_T, decoder discretized",
            "unit": "bits per dimension, one noise per image and term",
            "terms": self._count,
            "clip": self.clip,
        }

    def terms(
        self, process: Process, denoise: Denoise, x0: jax.Array, keys: jax.Array
    ) -> BoundTerms:
        """Returns the terms of x0 (B, ...), see `bound_terms`."""
        return bound_terms(process, denoise, x0, keys, times=self.times, clip=self.clip)

    def result(self, rows: Rows, described: dict[str, Any]) -> Result:
        """Returns the means over the images. described: the whole protocol."""
        alpha_bar = self.schedule.alpha_bar[self.times[:-1]]
        values = summary(rows, self.times[:-1].tolist(), alpha_bar / (1 - alpha_bar))
        steps = values.pop("per_timestep")
        warnings = []
        if self._count < self.schedule.num_steps:
            warnings.append(
                f"the bound of {self._count} of {self.schedule.num_steps} "
                "times: exact, but looser than that of all, and not comparable with it"
            )
        return Result(
            title="Bits per dimension",
            summary=f"{values['bits_per_dim']:.4f} bits/dim{shown_error(values)}, {len(rows)} "
            f"images: an upper bound of -log2 p; prior {values['prior']:.4f}, KL terms "
            f"{values['kl']:.4f}, decoder {values['decoder']:.4f}.",
            values=values,
            protocol=described,
            tables=(
                Table(
                    "terms",
                    tuple(steps),
                    tuple(zip(*steps.values(), strict=True)),
                    "Mean over the images; the term at the last t is L_0, L_T is not in it.",
                ),
            ),
            warnings=tuple(warnings),
        )

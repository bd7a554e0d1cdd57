"""Bits per dimension by the flow's ODE: how `bits_per_dim` measures kind flow."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Denoise
from contextdiff_jax.evaluation.bound_rows import ImageRows, mean_and_error, shown_error
from contextdiff_jax.evaluation.ode_likelihood import (
    BITS_OF_A_BIN,
    OdeTerms,
    dequantized,
    ode_terms,
    solver_times,
)
from contextdiff_jax.evaluation.results import Result

STEPS, PROBES = 40, 2  # where nothing was asked for
GUIDED = "the network has learned guidance: this is the density of guided pictures, not the data's"


@dataclasses.dataclass(frozen=True)
class OdeRows(ImageRows):
    """-log2 p of N dequantized images, float64; fields as in OdeTerms."""

    prior: np.ndarray
    volume: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Bits per dimension of the 8-bit values (N,): the mean over the probes."""
        return self.prior + self.volume.mean(axis=1) + BITS_OF_A_BIN

    @property
    def probe_error(self) -> float | None:
        """How far the mean over the images is off for the probes alone; None for one probe."""
        count, probes = self.volume.shape
        if probes < 2:
            return None
        of_images = self.volume.var(axis=1, ddof=1) / probes
        return float(np.sqrt(of_images.sum()) / count)


@dataclasses.dataclass(frozen=True)
class OdeMeasure:
    """path: the task's. relation: its name, for the record. steps, probes: of `ode_terms`.

    guidance: what the network has learned with its velocity; 1 for none.
    """

    path: LinearPath
    relation: str
    steps: int
    probes: int
    guidance: float = 1.0

    rows: ClassVar[type[OdeRows]] = OdeRows
    what: ClassVar[str] = "the density"

    @property
    def cost(self) -> str:
        """For the log: how often an image calls the network."""
        return f"{4 * self.steps} network calls with {self.probes} backwards"

    def protocol(self) -> dict[str, Any]:
        """Returns what the numbers depend on beside the stage, the data and the seed."""
        learned = "no" if self.guidance == 1 else f"the network's own {self.guidance:g} as"
        return {
            "density": "of the flow's ODE, the velocity below the first time held, "
            f"{learned} guidance",
            "dequantization": "uniform, one draw per image: (v + U - 1/2) / 127.5 - 1, U in [0, 1)",
            "unit": "bits per dimension of 8-bit values: an upper bound of -log2 P",
            "solver": "RK4 from t = 0 to 1, cube roots of t evenly spaced",
            "ode_steps": self.steps,
            "divergence": "Hutchinson, Rademacher signs, new ones for each step",
            "probes": self.probes,
            "relation": self.relation,
        }

    def terms(
        self, process: FlowProcess, denoise: Denoise, x0: jax.Array, keys: jax.Array
    ) -> OdeTerms:
        """Returns the terms of x0 (B, ...), 8-bit values mapped by v / 127.5 - 1."""
        times = solver_times(self.path, self.steps)
        x = dequantized(x0, keys)
        return ode_terms(process, denoise, x, keys, times=times, probes=self.probes)

    def result(self, rows: OdeRows, described: dict[str, Any]) -> Result:
        """Returns the means over the images. described: the whole protocol."""
        mean, error = mean_and_error(rows.total)
        values = {
            "bits_per_dim": mean,
            "standard_error": error,
            "probe_error": rows.probe_error,
            "prior": float(rows.prior.mean()),
            "volume": float(rows.volume.mean()),
            "images": len(rows),
        }
        probes = "" if rows.probe_error is None else f", by the probes alone {rows.probe_error:.4f}"
        return Result(
            title="Bits per dimension",
            summary=f"{mean:.4f} bits/dim{shown_error(values, probes)}, {len(rows)} images: -log2 "
            f"p by the flow's ODE, 8-bit values spread over their bins; noise "
            f"{values['prior']:.4f}, volume {values['volume']:.4f}, bins {BITS_OF_A_BIN:.4f}.",
            values=values,
            protocol=described,
            warnings=() if self.guidance == 1 else (GUIDED,),
        )

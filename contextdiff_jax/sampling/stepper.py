"""What every sampler is: how the state goes from one time to the next, given an estimate of x0."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.sampling.ab2 import AB2
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.ddim import DDIM
from contextdiff_jax.sampling.ddpm import ddpm
from contextdiff_jax.sampling.dpm_solver import DPMSolver
from contextdiff_jax.sampling.euler import Euler
from contextdiff_jax.sampling.guidance import steps_alike
from contextdiff_jax.sampling.heun import Heun
from contextdiff_jax.sampling.plms import PLMS


class Stepper(Protocol):
    """A sampler's steps from t to s < t; `loop.sample` scans over them.

    timesteps: int32 (n + 1,), the times visited, falling. adds_noise: whether `update` reads noise.
    inputs: arrays (n, ...), what each step reads beside the state.
    """

    @property
    def timesteps(self) -> np.ndarray: ...

    @property
    def adds_noise(self) -> bool: ...

    @property
    def inputs(self) -> Any: ...

    def init(self, x: jax.Array) -> Any:
        """Returns what the first step carries beside the state x (B, ...)."""

    def update(
        self, x: jax.Array, x0_hat: jax.Array, carried: Any, inputs: Any, noise: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Returns the state at s and what the next step carries.

        x0_hat: the guided and thresholded estimate at t. inputs: this step's. noise: N(0, I) like
        x, None where adds_noise is False.
        """


# From the process, the times, the sampler and what `guidance.steps_alike` says of these times.
_Make = Callable[[Process, np.ndarray, SamplerConfig, np.ndarray], Stepper]
STEPPERS: dict[str, _Make] = {
    "ddpm": lambda process, times, sampler, alike: ddpm(process, times),
    "ddim": lambda process, times, sampler, alike: DDIM(process, times, sampler.eta),
    "dpm_solver++": lambda process, times, sampler, alike: DPMSolver(
        process, times, alike, limit=sampler.threshold != "none"
    ),
    "plms": lambda process, times, sampler, alike: PLMS(process, times, alike),
    "euler": lambda process, times, sampler, alike: Euler(process, times),
    "heun": lambda process, times, sampler, alike: Heun(process, times, alike),
    "ab2": lambda process, times, sampler, alike: AB2(process, times, alike),
    # Euler's step by the mean velocity is exact; the loop tells the network where it ends.
    "mean_flow": lambda process, times, sampler, alike: Euler(process, times),
}
"""By `SamplerConfig.name`."""


def make_stepper(process: Process, sampler: SamplerConfig, skipped: int = 0) -> Stepper:
    """Returns the sampler's stepper at its times.

    skipped: steps left out at the beginning.
    Raises ValueError for times that do not fit, and a process that the sampler cannot serve.
    """
    if isinstance(process, FlowProcess):
        sampler.check_flow("sampler", process.ancestral)
        sampler.check_mean_flow("sampler", process.mean_velocities, process.guided)
    else:
        sampler.check_schedule("sampler", process.relation is not None)
    times = sampler.timesteps(process.schedule)[skipped:]
    alike = steps_alike(process.schedule, sampler, times)
    return STEPPERS[sampler.name](process, times, sampler, alike)

"""Context-aware DDPM (ContextDiff, eq. 7): every step samples the posterior of eq. 3."""

import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.sampling.ddim import DDIM


def ddpm(process: Process, timesteps: np.ndarray) -> DDIM:
    """Returns the stepper of ancestral sampling: the general step with all of its noise."""
    return DDIM(process, timesteps, eta=1.0)

"""The configuration that the diffusion tasks share."""

import dataclasses
import math
from typing import Literal

from contextdiff_jax.diffusion.weights import WeightName


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The process and its objective (method: the biased process, and the loss of eq. 6).

    objective: what is minimised. simple: the weighted squared error of x0 (eq. 6). bound: the exact
    variational bound (eq. 4) in bits per dimension, with every term's bias. mixed: simple for the
    denoiser and the bound for the adapter, at the price of a second backward pass of the denoiser;
    without an adapter it is simple.
    loss_weight is the weight on the squared error of x0, whatever the network predicts; not read
    by objective bound.
    consistency: weight of a further term of objective simple, mean[(b_t(x0) - b_t(x0_hat))^2 /
        (1 - ab_t)], without a gradient into x0_hat. A sampler knows x0_hat alone: where the adapter
        makes something else of it than of x0, samples are biased. Not in the paper; 0 is the
        paper's objective. It costs another call of CLIP and adapter.
    drop_condition: share of examples whose condition is hidden from the denoiser (never from
    the adapter). drop_both: share of examples whose condition is hidden from both, which trains
    purely unconditional sampling.
    """

    schedule: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    num_steps: int = 1000
    prediction: Literal["x0", "eps", "v"] = "v"
    objective: Literal["simple", "bound", "mixed"] = "simple"
    loss_weight: WeightName = "x0"
    consistency: float = 0.0
    drop_condition: float = 0.1
    drop_both: float = 0.0

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if self.num_steps < 2:
            raise ValueError(f"{where}.num_steps = {self.num_steps}: must be at least 2")
        if not 0 <= self.consistency < math.inf:
            raise ValueError(f"{where}.consistency = {self.consistency}: must be at least 0")
        if self.consistency and self.objective != "simple":
            raise ValueError(
                f"{where}.consistency = {self.consistency}: must be 0, objective "
                f"{self.objective!r} does not read it"
            )
        for key in ("drop_condition", "drop_both"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be in [0, 1]")
        if self.objective == "bound" and self.loss_weight != "x0":
            raise ValueError(
                f"{where}.loss_weight = {self.loss_weight!r}: must be 'x0', the default, objective "
                "'bound' does not read it"
            )
        if (self.prediction, self.loss_weight) == ("eps", "x0") and self.objective != "bound":
            raise ValueError(
                f"{where}.loss_weight = 'x0': not with prediction 'eps', whose error it multiplies "
                "by 1/snr, so that the last times are nearly all of the loss; take 'snr', or "
                f"{where}.prediction 'v' or 'x0'"
            )

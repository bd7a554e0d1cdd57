"""The configuration that the diffusion tasks share."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The process and its objective (method: the biased process, and the loss of eq. 6).

    loss_weight is the weight on the squared error of x0, whatever the network predicts.
    drop_condition: share of examples whose condition is hidden from the denoiser (never from
    the adapter). drop_both: share of examples whose condition is hidden from both, which trains
    purely unconditional sampling.
    """

    schedule: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    num_steps: int = 1000
    prediction: Literal["x0", "eps", "v"] = "eps"
    loss_weight: Literal["x0", "snr", "min_snr_5", "p2"] = "x0"
    drop_condition: float = 0.1
    drop_both: float = 0.0

"""The configuration that the diffusion tasks share."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The process and its objective (method: the biased process, and the loss of eq. 6).

    objective: what is minimised. simple: the weighted squared error of x0 (eq. 6). bound: the exact
    variational bound (eq. 4) in bits per dimension, with every term's bias. mixed: simple for the
    denoiser and the bound for the adapter, at the price of a second backward pass of the denoiser;
    without an adapter it is simple.
    loss_weight is the weight on the squared error of x0, whatever the network predicts; not read
    by objective bound.
    drop_condition: share of examples whose condition is hidden from the denoiser (never from
    the adapter). drop_both: share of examples whose condition is hidden from both, which trains
    purely unconditional sampling.
    """

    schedule: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    num_steps: int = 1000
    prediction: Literal["x0", "eps", "v"] = "eps"
    objective: Literal["simple", "bound", "mixed"] = "simple"
    loss_weight: Literal["x0", "snr", "min_snr_5", "p2"] = "x0"
    drop_condition: float = 0.1
    drop_both: float = 0.0

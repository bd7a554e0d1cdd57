"""The configuration of a sampler."""

import dataclasses
import math
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np

from contextdiff_jax.diffusion.schedules import Schedule, sampling_timesteps
from contextdiff_jax.system.unread import check_default

Name = Literal["ddpm", "ddim", "dpm_solver++", "plms", "euler", "heun", "ab2", "mean_flow"]


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How pictures are drawn. Hashable, so it may be a static argument of `jax.jit`.

    name: ddpm (context-aware DDPM, eq. 7), ddim (eq. 11), dpm_solver++ (second-order multistep),
        plms (fourth-order multistep, of kind vp alone); euler, heun (second order) or ab2
        (second-order multistep) for the flow's ODE; mean_flow, steps of any length by a network
        that was trained with diffusion.objective mean_flow. plms and these four not with an
        adapter.
    num_steps: network calls per picture, at most the schedule's T; plms makes one more, heun
        2 num_steps - 1 in all, or 2 num_steps where final_timestep is above 0.
    spacing, offset, skip_last, final_timestep: the times visited, see `sampling_timesteps`. offset
        is only read by spacing leading, skip_last not by trailing. Stable Diffusion: leading,
        offset 1, final_timestep 1.
    eta: only read by ddim, in 0..1: the share of the posterior's noise that a step adds.
    guidance_scale: w >= 0 of classifier-free guidance; 1 is the conditional estimate alone, 0 the
        unconditional one alone (either costs one network call per step, any other w a doubled one).
    guidance_low, guidance_high: guidance applies only at noise levels sqrt((1 - ab)/ab), with
        diffusion.kind flow at times t in [0, 1], between them (Kynkäänniemi et al. 2024); None is
        no limit. Elsewhere the conditional estimate alone is taken, for one network call instead of
        a doubled one.
    guidance_space: what the two estimates are mixed as. x0 is an affine function of eps, so both
        spaces give the same estimate up to rounding.
    threshold: none, static (clip x0 to [-1, 1]) or dynamic (Imagen); none for latents.
    percentile: only read by threshold dynamic, in (0, 100].
    max_threshold: only read by threshold dynamic: an upper limit, at least 1, of its range.
    """

    name: Name = "ddpm"
    num_steps: int = 50
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    offset: int = 0
    skip_last: bool = False
    final_timestep: int = 0
    eta: float = 0.0
    guidance_scale: float = 1.0
    guidance_low: float | None = None
    guidance_high: float | None = None
    guidance_space: Literal["x0", "eps"] = "x0"
    threshold: Literal["none", "static", "dynamic"] = "none"
    percentile: float = 99.5
    max_threshold: float | None = None

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        for key, kind in get_type_hints(type(self)).items():
            value = getattr(self, key)
            if get_origin(kind) is Literal and value not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ValueError(f"{where}.{key} = {value!r}: must be one of {choices}")
        if self.name != "ddim":
            check_default(self, "eta", where, f"{self.name} does not read it")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"{where}.eta = {self.eta}: must be in 0..1")
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"{where}.guidance_scale = {self.guidance_scale}: must be at least 0")
        low, high = self.guidance_low or 0.0, self.guidance_high
        if not 0 <= low < math.inf:
            raise ValueError(f"{where}.guidance_low = {low}: must be at least 0, or None")
        if high is not None and not low < high < math.inf:
            raise ValueError(f"{where}.guidance_high = {high}: must be above {low}, or None")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"{where}.percentile = {self.percentile}: must be in (0, 100]")
        if self.threshold != "dynamic":
            reader = f"threshold {self.threshold} does not read it"
            check_default(self, "max_threshold", where, reader)
        if self.max_threshold is not None and not self.max_threshold >= 1:
            raise ValueError(f"{where}.max_threshold = {self.max_threshold}: must be at least 1")

    @property
    def aims(self) -> bool:
        """Whether the network is told where a step ends, beside where it begins."""
        return self.name == "mean_flow"

    def check_schedule(self, where: str, adapter: bool) -> None:
        """Raises ValueError where the sampler cannot serve kind vp, or the paper's adapter."""
        if self.aims:
            raise ValueError(
                f"{where}.name = 'mean_flow': not of kind 'vp', it needs a network trained with "
                "objective 'mean_flow'; take 'ddim' or 'dpm_solver++'"
            )
        if adapter and self.name not in ("ddpm", "ddim", "dpm_solver++"):
            raise ValueError(
                f"{where}.name = {self.name!r}: not with an adapter, or a scaled relation, whose "
                "bias it does not know; take 'ddim' or 'dpm_solver++'"
            )

    def check_mean_flow(self, where: str, mean_velocities: bool, guided: bool) -> None:
        """Raises ValueError where the sampler does not go with what the network has learned.

        mean_velocities: whether it is these. guided: whether it has learned guidance.
        """
        if self.aims and not mean_velocities:
            raise ValueError(
                f"{where}.name = 'mean_flow': not with a network trained for single times; "
                "take 'euler' or 'ab2', or train it with objective 'mean_flow'"
            )
        if self.aims and self.threshold != "none":
            raise ValueError(
                f"{where}.threshold = {self.threshold!r}: must be 'none' with name 'mean_flow', "
                "whose steps end before they reach an estimate of x0"
            )
        if guided and self.guidance_scale not in (0, 1):
            raise ValueError(
                f"{where}.guidance_scale = {self.guidance_scale}: must be 0 or 1, the network has "
                "learned guidance (flow.mean.guidance)"
            )

    def check_flow(self, where: str, ancestral: bool) -> None:
        """Raises ValueError naming the first key below `where` that kind flow does not allow.

        ancestral: whether x_t given x0 is noise around a known mean; not with a coupling.
        """
        if self.name == "plms":
            raise ValueError(f"{where}.name = 'plms': not of kind 'flow', take 'ab2'")
        if not ancestral and (self.name == "ddpm" or self.eta):
            named = "name = 'ddpm'" if self.name == "ddpm" else f"eta = {self.eta}"
            raise ValueError(
                f"{where}.{named}: not with a coupling, whose noise depends on the picture, so "
                "that no step is a posterior; take euler, heun, ab2, dpm_solver++, or ddim with "
                "eta 0"
            )
        if self.guidance_space != "x0":
            raise ValueError(
                f"{where}.guidance_space = {self.guidance_space!r}: must be 'x0' of kind 'flow', "
                "which is guidance in velocity"
            )
        for key in ("guidance_low", "guidance_high"):
            if not 0 <= (getattr(self, key) or 0.0) <= 1:
                raise ValueError(
                    f"{where}.{key} = {getattr(self, key)}: must be a time in [0, 1] of kind 'flow'"
                )

    def timesteps(self, schedule: Schedule) -> np.ndarray:
        """Returns the times visited on `schedule`, int32 (num_steps + 1,), falling."""
        return sampling_timesteps(
            schedule.num_steps,
            self.num_steps,
            self.spacing,
            offset=self.offset,
            skip_last=self.skip_last,
            final=self.final_timestep,
        )


def published_ddim(num_steps: int, guidance_scale: float) -> SamplerConfig:
    """DDIM as diffusers has it for latent diffusion: it ends at the first noise level."""
    return SamplerConfig(
        name="ddim",
        num_steps=num_steps,
        spacing="leading",
        offset=1,
        final_timestep=1,
        guidance_scale=guidance_scale,
        guidance_space="eps",
        threshold="none",
    )

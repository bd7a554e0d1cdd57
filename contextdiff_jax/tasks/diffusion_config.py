"""The configuration that the diffusion tasks share."""

import dataclasses
import math
from typing import Any, ClassVar, Literal

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.schedules import Schedule, make_schedule
from contextdiff_jax.diffusion.weights import VANISHING, WeightName
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.spaces.pixels import Pixels
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.resumed import FREE
from contextdiff_jax.system.unread import check_default
from contextdiff_jax.tasks.flow import Flow
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.task_config import NetworkConfig, Parts, TaskConfig
from contextdiff_jax.tasks.whitening import moments

UNREAD_BY_FLOW = (
    *("schedule", "betas", "loss_weight"),
    *("relation_consistency", "adapter_condition", "scaled_relation"),
)
"""What kind flow does not read of `DiffusionConfig`: as it is by default there."""

_DIAGNOSED_STEPS = 10  # sampling steps of the costlier diagnostics


@dataclasses.dataclass(frozen=True)
class PreviewConfig:
    """Sample grids written during training, raw and EMA weights side by side.

    every: steps between grids, 0 for none. prompts: values of the condition that captions give.
    num_steps: sampling steps of a preview.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    num_steps: int = 25


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The process and its objective (method: the biased process, and the loss of eq. 6).

    kind: vp is the paper's process on a variance-preserving schedule, with its adapter where
    config.use_adapter is True; flow is flow matching (docs/flow.md), which reads section `flow`,
    num_steps, prediction (v: the velocity; or x0), objective (simple or mean_flow), the times and
    the two drops alone.
    objective: what is minimised. simple: the weighted squared error of x0 (eq. 6). bound: the exact
    variational bound (eq. 4) in bits per dimension, with every term's bias. mixed: simple for the
    denoiser and the bound for the adapter, at the price of a second backward pass of the denoiser;
    without an adapter it is simple. mean_flow: of kind flow alone, mean velocities over steps of
    any length, for one to four network calls (Geng et al. 2025).
    betas: the first and the last beta of a linear schedule of 1000 steps; () for the published
        ones. Latent diffusion has others for classes: 0.0015 and 0.0195.
    loss_weight is the weight on the squared error of x0, whatever the network predicts, see
        diffusion/weights.py; one of snr, min_snr_5 and p2 where it predicts eps. Not read by
        objective bound.
    times: how training draws them, see training_times: uniform in 1..T, or logit_normal, where the
        share of noise sigma / (signal + sigma) is the sigmoid of N(time_mean, time_std^2): more of
        the middle (Esser et al. 2024). Of a flow that share is t, before its shift. Not read by
        objectives bound and mixed, whose bound needs uniform times.
    relation_consistency: weight of a further term of objective simple, mean[(b_t(x0) -
        b_t(x0_hat))^2 / (1 - ab_t)], without a gradient into x0_hat. A sampler knows x0_hat
        alone: where the adapter makes something else of it than of x0, samples are biased. Not in
        the paper; 0 is the paper's objective. It costs another call of CLIP and adapter.
    adapter_condition: own, or a control that shows whether the context matters: with shuffled the
        adapter gets the condition of the picture before in the batch (the first that of the last),
        with none it gets none, in training and in sampling. The denoiser always gets its own.
    scaled_relation: a control without an adapter: r = scaled_relation x0, which is another noise
        schedule and no relation; above -1, so that x_t keeps the sign of x0. 0 is none.
    drop_condition: share of examples whose condition is hidden from the denoiser (never from
    the adapter). drop_both: share of examples whose condition is hidden from both, which trains
    purely unconditional sampling.
    """

    kind: Literal["vp", "flow"] = "vp"
    flow: FlowConfig = FlowConfig()
    schedule: Literal["cosine", "linear", "scaled_linear"] = "cosine"
    num_steps: int = 1000
    betas: tuple[float, ...] = dataclasses.field(default=(), metadata=most(1))
    prediction: Literal["x0", "eps", "v"] = "v"
    objective: Literal["simple", "bound", "mixed", "mean_flow"] = "simple"
    loss_weight: WeightName = "x0"
    times: Literal["uniform", "logit_normal"] = "uniform"
    time_mean: float = dataclasses.field(default=0.0, metadata=most(100))
    time_std: float = dataclasses.field(default=1.0, metadata=most(100))
    relation_consistency: float = 0.0
    adapter_condition: Literal["own", "shuffled", "none"] = "own"
    scaled_relation: float = dataclasses.field(default=0.0, metadata=most(10**6))
    drop_condition: float = 0.1
    drop_both: float = 0.0

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if self.num_steps < 2:
            raise ValueError(f"{where}.num_steps = {self.num_steps}: must be at least 2")
        self._check_kind(where)
        if self.betas and (self.schedule == "cosine" or not _rising(self.betas)):
            raise ValueError(
                f"{where}.betas = {self.betas}: must be two numbers that rise within (0, 1), or () "
                f"where {where}.schedule is 'cosine'"
            )
        self._check_times(where)
        value = self.relation_consistency
        if not 0 <= value < math.inf:
            raise ValueError(f"{where}.relation_consistency = {value}: must be at least 0")
        if self.objective != "simple":
            check_default(self, "relation_consistency", where, self._unread_by_objective)
        if not -1 < self.scaled_relation < math.inf:
            raise ValueError(f"{where}.scaled_relation = {self.scaled_relation}: must be above -1")
        for key in ("drop_condition", "drop_both"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be in [0, 1]")
        if self.objective == "bound":
            check_default(self, "loss_weight", where, self._unread_by_objective)
        fits = self.loss_weight in VANISHING or self.objective == "bound"
        if self.prediction == "eps" and not fits:
            raise ValueError(
                f"{where}.loss_weight = {self.loss_weight!r}: not with prediction 'eps', whose "
                "error it multiplies by up to 1/snr, so that the last times are nearly all of the "
                f"loss; take one of {', '.join(VANISHING)}, or {where}.prediction 'v' or 'x0'"
            )

    def _check_kind(self, where: str) -> None:
        """What the other kind reads must be as it is by default."""
        self.flow.validate(f"{where}.flow")
        reader = f"{where}.kind {self.kind!r} does not read it"
        if self.kind == "flow":
            for key in UNREAD_BY_FLOW:
                check_default(self, key, where, reader)
        else:
            for field in dataclasses.fields(FlowConfig):
                check_default(self.flow, field.name, f"{where}.flow", reader)
        if self.kind == "flow" and self.prediction == "eps":
            raise ValueError(f"{where}.prediction = 'eps': must be 'v' or 'x0' of kind 'flow'")
        known = ("simple", "mean_flow") if self.kind == "flow" else ("simple", "bound", "mixed")
        if self.objective not in known:
            raise ValueError(
                f"{where}.objective = {self.objective!r}: must be one of {', '.join(known)} of "
                f"kind {self.kind!r}"
            )
        self._check_mean(f"{where}.flow.mean")

    def _check_times(self, where: str) -> None:
        """Times of the middle need an objective that any times serve."""
        middle = self.times == "logit_normal"
        if middle and self.objective in ("bound", "mixed"):
            raise ValueError(
                f"{where}.times = 'logit_normal': must be 'uniform' with objective "
                f"{self.objective!r}, whose bound is an average over uniform times"
            )
        if not 0 < self.time_std < math.inf:
            raise ValueError(f"{where}.time_std = {self.time_std}: must be a finite number above 0")
        if not middle:
            for key in ("time_mean", "time_std"):
                check_default(self, key, where, "times 'logit_normal' alone reads it")

    def _check_mean(self, where: str) -> None:
        """What objective mean_flow reads must be as it is by default elsewhere."""
        mean = self.flow.mean
        if not self.mean_velocities:
            for field in dataclasses.fields(mean):
                check_default(mean, field.name, where, "objective 'mean_flow' alone reads it")
        if self.mean_velocities and self.flow.learns and mean.guidance != 1:
            raise ValueError(
                f"{where}.guidance = {mean.guidance}: must be 1 with relation "
                f"{self.flow.relation!r}, which learns from the flow without guidance"
            )

    @property
    def _unread_by_objective(self) -> str:
        return f"objective {self.objective!r} does not read it"

    @property
    def mean_velocities(self) -> bool:
        """Whether the network learns mean velocities."""
        return self.objective == "mean_flow"

    def schedule_at(self, resolution: int) -> Schedule | LinearPath:
        """Returns the levels of signal and noise for pictures of this side."""
        if self.kind == "flow":
            return LinearPath(self.num_steps, self.flow.shift_at(resolution))
        return make_schedule(self.schedule, self.num_steps, self.betas or None)


def _rising(betas: tuple[float, ...]) -> bool:
    return len(betas) == 2 and 0 < betas[0] <= betas[1] < 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionTaskConfig(TaskConfig):
    """What every task that trains a denoiser reads; a member of the union adds its own networks.

    diagnose_every: steps between the costlier diagnostics (divergence of the last steps, and for
    super-resolution the distance of the downsampled result from its input); 0 for none.
    """

    draws: ClassVar[bool] = True

    adapter: AdapterConfig | None = None
    diffusion: DiffusionConfig
    sampler: SamplerConfig = dataclasses.field(metadata=FREE)
    preview: PreviewConfig = dataclasses.field(default=PreviewConfig(), metadata=FREE)
    diagnose_every: int = dataclasses.field(default=0, metadata=FREE)

    def networks(self) -> dict[str, NetworkConfig]:
        """Returns the sections of networks: every field that holds one, the adapter last."""
        names = sorted((f.name for f in dataclasses.fields(self)), key=lambda n: n == "adapter")
        found = {name: getattr(self, name) for name in names}
        return {name: each for name, each in found.items() if isinstance(each, NetworkConfig)}

    def encoders(self, use_adapter: bool) -> tuple[str, ...]:
        """Returns "text" where captions are encoded, "clip" with an adapter."""
        return ("text",) * self.reads_text + ("clip",) * use_adapter

    @property
    def fits_data(self) -> bool:
        """Whether its relation is fitted to the data."""
        return self.diffusion.flow.relation == "whitening"

    @property
    def preview_every(self) -> int:
        """Steps between sample grids."""
        return self.preview.every

    @property
    def preview_prompts(self) -> tuple[str, ...]:
        """What the sample grids show."""
        return self.preview.prompts

    @property
    def diagnosed_every(self) -> int:
        """Steps between the costlier diagnostics."""
        return self.diagnose_every

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        networks = self.networks()
        if use_adapter and self.adapter is None:
            raise ValueError(f"{where}.adapter is missing; task {self.kind!r} reads it")
        self.sampler.validate(f"{where}.sampler")
        self.diffusion.validate(f"{where}.diffusion")
        if self.in_latents and self.fits_data:
            raise ValueError(
                f"{where}.diffusion.flow.relation = 'whitening': must be another in latents, it is "
                "fitted to pictures"
            )
        if self.diffusion.kind == "flow" and use_adapter:
            raise ValueError(
                f"{where}.diffusion.kind = 'flow': not with config.use_adapter = True, the "
                "paper's adapter depends on the time, which a flow's relation must not; give "
                "--config.use_adapter=False, or take a config of kind 'vp'"
            )
        if self.diffusion.scaled_relation and use_adapter:
            raise ValueError(
                f"{where}.diffusion.scaled_relation = {self.diffusion.scaled_relation}: must be 0 "
                "with config.use_adapter = True, it stands in the place of the adapter"
            )
        self._check_learned_guidance(f"{where}.diffusion.flow.mean.guidance")
        self.check_sampler(self.sampler, f"{where}.sampler", data.resolution, use_adapter)
        self._check_steps_of_logs(where, data.resolution)
        for section, network in networks.items():
            if section == "adapter" and not use_adapter:
                continue
            network.validate(f"{where}.{section}")
            kernel = getattr(network, "attention_implementation", "xla")
            if self.diffusion.mean_velocities and kernel != "xla":
                raise ValueError(
                    f"{where}.{section}.attention_implementation = {kernel!r}: must be 'xla' with "
                    "objective 'mean_flow', whose derivative fused kernels do not have"
                )
            if not self.in_latents:
                side = f"{where.rpartition('.')[0]}.data.resolution (for {section})"
                network.check_resolution(data.resolution, side)

    def check_sampler(
        self, sampler: SamplerConfig, where: str, resolution: int, use_adapter: bool
    ) -> None:
        """Raises ValueError where a sampler, by its name `where`, does not serve the process.

        resolution: side of the pictures, on which the schedule may depend.
        """
        if self.diffusion.kind == "flow":
            sampler.check_flow(where, self.diffusion.flow.ancestral)
            guided = self.diffusion.flow.mean.guidance != 1
            sampler.check_mean_flow(where, self.diffusion.mean_velocities, guided)
        else:
            sampler.check_schedule(where, self.biased(use_adapter))
        self._check_steps(sampler, where, resolution)

    def biased(self, use_adapter: bool) -> bool:
        """Returns whether x_t of kind vp has a bias, by the adapter or by a scaled relation."""
        return use_adapter or self.diffusion.scaled_relation != 0

    def _check_learned_guidance(self, where: str) -> None:
        """Guidance is learned from examples without a condition.

        Where conditions are known only once the task is built, mean_flow_loss checks it.
        """
        scale, known = self.diffusion.flow.mean.guidance, self.conditions
        if scale != 1 and known is not None and not any(each.droppable for each in known):
            raise ValueError(
                f"{where} = {scale}: must be 1, task {self.kind!r} has no condition that can be "
                "dropped"
            )

    def _check_steps_of_logs(self, where: str, resolution: int) -> None:
        """What samples during training must find its times on the run's schedule."""
        if self.preview.every:
            preview = dataclasses.replace(self.sampler, num_steps=self.preview.num_steps)
            self._check_steps(preview, f"{where}.preview", resolution)
        if self.diagnose_every and self.diffusion.num_steps < _DIAGNOSED_STEPS:
            raise ValueError(
                f"{where}.diffusion.num_steps = {self.diffusion.num_steps}: must be at least "
                f"{_DIAGNOSED_STEPS} where {where}.diagnose_every is not 0"
            )

    def _check_steps(self, sampler: SamplerConfig, where: str, resolution: int) -> None:
        """The schedule must have a sampler's number of steps."""
        try:
            sampler.timesteps(self.diffusion.schedule_at(resolution))
        except ValueError as error:
            raise ValueError(f"{where}.num_steps = {sampler.num_steps}: {error}") from error

    def space(self, parts: Parts) -> Any:
        """Returns what x0 lives in."""
        return Pixels(parts.data.resolution)

    def shared_parts(self, parts: Parts) -> dict[str, Any]:
        """Returns what every diffusion task is made of, beside its conditions and its denoiser.

        Raises ValueError where the adapter is configured for image tokens of another width.
        """
        reads_image = parts.use_adapter and self.adapter.image_dim is not None
        image = parts.encoders.clip_image() if reads_image else None
        if image is not None:
            where = f"{parts.where}.task.adapter.image_dim"
            check_width(where, self.adapter.image_dim, image.width)
        return {
            "config": self.diffusion,
            "schedule": self.diffusion.schedule_at(parts.data.resolution),
            "flow": self._flow(parts),
            "space": self.space(parts),
            "adapter": Adapter(self.adapter, dtype=parts.dtype) if parts.use_adapter else None,
            "image_encoder": image,
            "sampler": self.sampler,
            "preview_sampler": dataclasses.replace(self.sampler, num_steps=self.preview.num_steps),
        }

    def _flow(self, parts: Parts) -> Flow | None:
        """Returns what a task of kind flow has in the place of an adapter."""
        if self.diffusion.kind != "flow":
            return None
        fitted, source = None, parts.source
        if self.diffusion.flow.relation == "whitening" and source is not None:
            fitted = moments(source, parts.data, parts.folder, parts.where)
        return Flow(self.diffusion.flow, fitted, parts.dtype, self.diffusion.mean_velocities)


def check_width(where: str, configured: int | None, width: int) -> None:
    """Raises ValueError where a network is configured for tokens of another width."""
    if configured != width:
        raise ValueError(
            f"{where} = {configured}: must be {width}, as wide as its encoder's tokens"
        )

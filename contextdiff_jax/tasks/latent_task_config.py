"""The configuration that the tasks in latents share."""

import dataclasses
from typing import Any, ClassVar

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.frozen import frozen_stage_sizes
from contextdiff_jax.networks.config_checks import check_multiple
from contextdiff_jax.networks.latent_config import FirstStageConfig, LatentUNetConfig
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.lora import LoRAConfig
from contextdiff_jax.spaces.latents import LatentSpace
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.task_config import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentTaskConfig(DiffusionTaskConfig):
    """latent_unet: the denoiser. The other sections: see DiffusionTaskConfig.

    first_stage: what makes pictures latents, and latents pictures; frozen.
    lora: updates of the denoiser's attention of low rank, which train as the network "lora"; None
        for none. `trainable` then leaves the denoiser as it is.
    """

    in_latents: ClassVar[bool] = True

    latent_unet: LatentUNetConfig
    first_stage: FirstStageRef
    lora: LoRAConfig | None = None

    def folders(self) -> tuple[str, ...]:
        """Returns the folders of the first stage, and of the tiny decoder."""
        return tuple(filter(None, (self.first_stage.path, self.first_stage.decoder)))

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        super().validate(where, data, use_adapter)
        self.first_stage.validate(f"{where}.first_stage")
        if self.lora is not None:
            self.lora.validate(f"{where}.lora")
        for key, value, allowed in (
            ("sampler.threshold", self.sampler.threshold, "none"),
            ("diffusion.objective", self.diffusion.objective, "simple"),
        ):
            if value != allowed:
                raise ValueError(
                    f"{where}.{key} = {value!r}: must be {allowed!r}, latents have no bounds"
                )
        if use_adapter and self.adapter.image_channels != self.latent_unet.image_channels:
            raise ValueError(
                f"{where}.adapter.image_channels = {self.adapter.image_channels}: must be "
                f"{self.latent_unet.image_channels}, that of {where}.latent_unet"
            )

    def check_folders(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError where the first stage's sizes do not fit networks and data."""
        path = self.first_stage.path
        self._check_latents(frozen_stage_sizes(path), where, data.resolution, use_adapter)

    def _check_latents(
        self, stage: FirstStageConfig, where: str, resolution: int, use_adapter: bool
    ) -> None:
        factor, channels = stage.reduction, stage.latent_channels
        sides = f"{where.rpartition('.')[0]}.data.resolution"
        check_multiple(sides, resolution, factor)
        for section, network in self.networks().items():
            if section == "adapter" and not use_adapter:
                continue
            side = f"{sides} / {factor} of the first stage (for {section})"
            network.check_resolution(resolution // factor, side)
            if network.image_channels != channels:
                raise ValueError(
                    f"{where}.{section}.image_channels = {network.image_channels}: must be "
                    f"{channels}, the channels of the first stage's latents"
                )

    def space(self, parts: Parts) -> LatentSpace:
        """Returns the space of the first stage; ValueError where networks do not fit it."""
        where, side = f"{parts.where}.task", parts.data.resolution
        stage, decoder = self.first_stage.load(parts.encoders, self._shown(parts.use_adapter))
        self._check_latents(stage.module.config, where, side, parts.use_adapter)
        return self.first_stage.space(stage, decoder, side, f"{where}.first_stage")

    def _shown(self, use_adapter: bool) -> bool:
        """Whether CLIP sees the estimate of x0."""
        return use_adapter and self.adapter.image_dim is not None

    def latent_parts(self, parts: Parts) -> dict[str, Any]:
        """Returns what a task in latents is made of, beside its conditions."""
        stage, decoder = self.first_stage.load(parts.encoders, self._shown(parts.use_adapter))
        return {
            "denoiser": LatentUNet(self.latent_unet, parts.dtype),
            "first_stage": stage,
            "decoder": decoder,
            "lora": self.lora,
            **self.shared_parts(parts),
        }

"""Super-resolution: the same process, conditioned on text and on a low-resolution picture."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.low_resolution import LowResolution, downsample
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.networks.config import EfficientUNetConfig
from contextdiff_jax.networks.efficient_unet import EfficientUNet
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig
from contextdiff_jax.tasks.task_config import Parts, register
from contextdiff_jax.tasks.text_to_image import text_condition
from contextdiff_jax.training.task import Batch, Metrics, Params

_DIAGNOSED = 8  # examples


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(DiffusionTaskConfig):
    """efficient_unet: the denoiser. The other sections: see DiffusionTaskConfig.

    low_resolution: side of the conditioning picture, which the picture is resized to as the data
    pipeline resizes (PIL's Lanczos, 8 bits); augmentation: the largest level of noise added to it
    in training (levels are uniform in [0, augmentation], 0 is clean).
    """

    reads_text: ClassVar[bool] = True
    conditions: ClassVar[tuple[type[Condition], ...]] = (Text, LowResolution)

    kind: Literal["super_resolution"] = "super_resolution"
    efficient_unet: EfficientUNetConfig
    low_resolution: int = 64
    augmentation: float = 1.0

    @property
    def enlarges(self) -> tuple[str, int]:
        """The field with the side of the pictures that it enlarges, and that side."""
        return "low_resolution", self.low_resolution

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if self.efficient_unet.residual and self.diffusion.prediction != "x0":
            raise ValueError(
                f"{where}.diffusion.prediction = {self.diffusion.prediction!r}: must be 'x0' where "
                f"{where}.efficient_unet.residual is True"
            )
        super().validate(where, data, use_adapter)
        if self.low_resolution < 1 or data.resolution % self.low_resolution:
            raise ValueError(
                f"{where}.low_resolution = {self.low_resolution}: must divide "
                f"{where.rpartition('.')[0]}.data.resolution = {data.resolution}"
            )
        if not 0 <= self.augmentation <= 1:
            raise ValueError(f"{where}.augmentation = {self.augmentation}: must be in [0, 1]")

    def build(self, parts: Parts) -> "SuperResolutionTask":
        """Returns the task with the conditions "text" and "low_resolution"."""
        shared = self.shared_parts(parts)
        # Its own noise, whatever the kind of the process.
        own = self.diffusion
        noise = make_schedule(own.schedule, own.num_steps, own.betas or None)
        low = LowResolution(noise, self.low_resolution, self.augmentation)
        return SuperResolutionTask(
            denoiser=EfficientUNet(self.efficient_unet, dtype=parts.dtype),
            conditions=(text_condition(self, parts, "efficient_unet"), low),
            **shared,
        )


@dataclasses.dataclass(frozen=True)
class SuperResolutionTask(DiffusionTask):
    """A diffusion task that is told how true its pictures stay to what they enlarge."""

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Adds how far the upsampled result is from its input, once downsampled (0 is perfect).

        A model that ignores its input scores like two unrelated pictures (`unrelated`).
        """
        metrics = super().diagnose(params, frozen, batch, key)
        sampler = dataclasses.replace(self.sampler, num_steps=10, name="ddim", eta=0.0)
        batch = jax.tree.map(lambda leaf: leaf[:_DIAGNOSED], dict(batch))
        batch |= self.of_target(batch)
        low = batch["low_res"]
        keys = jax.random.split(key, low.shape[0])
        images = self.sample(params, frozen, batch, keys, sampler)
        again = downsample(images, low.shape[1])
        rms = lambda difference: jnp.sqrt(jnp.mean(jnp.square(difference)))  # noqa: E731
        return metrics | {
            "consistency_rms": rms(again - low),
            "consistency_rms_unrelated": rms(again - jnp.roll(low, 1, axis=0)),
        }

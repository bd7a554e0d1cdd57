"""Pictures of prompts: a U-Net that attends to text, in a cascade its first stage."""

import dataclasses
from typing import ClassVar, Literal

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig, check_width
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToImageConfig(DiffusionTaskConfig):
    """unet: the denoiser. The other sections: see DiffusionTaskConfig."""

    reads_text: ClassVar[bool] = True
    conditions: ClassVar[tuple[type[Condition], ...]] = (Text,)

    kind: Literal["text_to_image"] = "text_to_image"
    unet: UNetConfig

    def build(self, parts: Parts) -> DiffusionTask:
        """Returns the task with the condition "text"."""
        return DiffusionTask(
            denoiser=UNet(self.unet, dtype=parts.dtype),
            conditions=(text_condition(self, parts, "unet"),),
            **self.shared_parts(parts),
        )


def text_condition(config: DiffusionTaskConfig, parts: Parts, section: str) -> Text:
    """Returns the condition on text; section: of the denoiser that attends to it.

    Raises ValueError where a network is configured for tokens of another width.
    """
    where, encoders = f"{parts.where}.task", parts.encoders
    condition = Text(encoders.text(), encoders.clip_text() if parts.use_adapter else None)
    check_width(
        f"{where}.{section}.text_dim", getattr(config, section).text_dim, condition.text.width
    )
    if condition.clip_text is not None:
        width = condition.clip_text.width
        check_width(f"{where}.adapter.text_dim", config.adapter.text_dim, width)
    return condition

"""Pictures of a class: the captions of the data are the names of its classes."""

import dataclasses
from typing import Literal

from contextdiff_jax.conditions.class_label import (
    ClassLabel,
    LabelConfig,
    LabelledSource,
    check_classes,
)
from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig, check_width
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassToImageConfig(DiffusionTaskConfig):
    """unet: the denoiser. The other sections: see DiffusionTaskConfig.

    classes: their names, as the data has them for captions (`data.caption_fields` chooses a column,
    a TFDS class label gives its names). Samples with another caption are skipped, and counted.
    label: sizes of what is learned of a class; its widths are the text_dim of the networks.
    """

    kind: Literal["class_to_image"] = "class_to_image"
    classes: tuple[str, ...]
    unet: UNetConfig
    label: LabelConfig = LabelConfig()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The condition "label", known of the config alone."""
        return (ClassLabel(self.classes, self.label),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.label.validate(f"{where}.label")
        super().validate(where, data, use_adapter)
        check_classes(self.classes, f"{where}.classes")
        check_width(f"{where}.unet.text_dim", self.unet.text_dim, self.label.width)
        if use_adapter:
            width = self.label.adapter_width
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, width)

    def usable(self, source: Source) -> Source:
        """Returns the source without the samples that have no class."""
        return LabelledSource(source, self.classes)

    def build(self, parts: Parts) -> DiffusionTask:
        """Returns the task with the condition "label"."""
        label = ClassLabel(self.classes, self.label, parts.use_adapter, parts.dtype)
        return DiffusionTask(
            denoiser=UNet(self.unet, dtype=parts.dtype),
            conditions=(label,),
            **self.shared_parts(parts),
        )

"""Pictures of a class in latents: latent diffusion on ImageNet, as cin256-v2 was published."""

import dataclasses
from typing import Literal

from contextdiff_jax.conditions.class_label import (
    LabelConfig,
    LabelledSource,
    check_classes,
)
from contextdiff_jax.conditions.class_token import ClassToken
from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.tasks.diffusion_config import check_width
from contextdiff_jax.tasks.latent_task_config import LatentTaskConfig
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentClassToImageConfig(LatentTaskConfig):
    """Pictures of classes; see LatentTaskConfig.

    classes: their names, as the data has them for captions, in the order of the embedding's rows.
    Samples with another caption are skipped, and counted.
    label: sizes of what is learned of a class; its widths are latent_unet.context_dim and
        adapter.text_dim.
    """

    kind: Literal["latent_class_to_image"] = "latent_class_to_image"
    classes: tuple[str, ...]
    label: LabelConfig = LabelConfig()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The condition "label", known of the config alone."""
        return (ClassToken(self.classes, self.label),)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.label.validate(f"{where}.label")
        super().validate(where, data, use_adapter)
        check_classes(self.classes, f"{where}.classes")
        context = self.latent_unet.context_dim
        check_width(f"{where}.latent_unet.context_dim", context, self.label.width)
        if use_adapter:
            width = self.label.adapter_width
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, width)

    def usable(self, source: Source) -> Source:
        """Returns the source without the samples that have no class."""
        return LabelledSource(source, self.classes)

    def build(self, parts: Parts) -> LatentTextToImage:
        """Returns the task with the condition "label"."""
        label = ClassToken(self.classes, self.label, parts.use_adapter, parts.dtype)
        return LatentTextToImage(conditions=(label,), **self.latent_parts(parts))

"""Pictures of a layout in latents: latent diffusion on OpenImages, as it was published."""

import dataclasses
from typing import ClassVar, Literal

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.layout import LaidOutSource, LayoutConfig
from contextdiff_jax.conditions.layout_sequence import LayoutSequence
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.tasks.diffusion_config import check_width
from contextdiff_jax.tasks.latent_task_config import LatentTaskConfig
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage
from contextdiff_jax.tasks.layout_to_image import check_layouts
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentLayoutToImageConfig(LatentTaskConfig):
    """Pictures of boxes with classes; see LatentTaskConfig.

    classes, layout: as LayoutToImageConfig has them. The layout is LDM's sequence of tokens alone,
    as wide as latent_unet.context_dim. Where a picture has no layout, or guidance leads away from
    it, the denoiser attends to the sequence of no object.
    """

    scenes_measure: ClassVar[str] = "boxes"

    kind: Literal["latent_layout_to_image"] = "latent_layout_to_image"
    classes: tuple[str, ...]
    layout: LayoutConfig = LayoutConfig(tokens="ldm", map=False, layers=16)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The condition "layout", known of the config alone."""
        return (LayoutSequence(self.classes, self.layout),)

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.layout.validate(f"{where}.layout")
        super().validate(where, data, use_adapter)
        check_layouts(self, where, data)
        for key, allowed in (("tokens", "ldm"), ("map", False)):
            value = getattr(self.layout, key)
            if value != allowed:
                raise ValueError(
                    f"{where}.layout.{key} = {value!r}: must be {allowed!r}, in latents a layout "
                    "is LDM's tokens"
                )
        if data.latents:
            raise ValueError(
                f"{where.rpartition('.')[0]}.data.latents = {data.latents!r}: must be empty, boxes "
                "are read with their pictures"
            )
        context = self.latent_unet.context_dim
        check_width(f"{where}.latent_unet.context_dim", context, self.layout.width)
        if use_adapter:
            width = self.layout.adapter_width
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, width)

    def usable(self, source: Source) -> Source:
        """Returns the source whose captions are layouts."""
        return LaidOutSource(source, self.classes, self.layout.objects)

    def build(self, parts: Parts) -> LatentTextToImage:
        """Returns the task with the condition "layout"."""
        layout = LayoutSequence(
            self.classes, self.layout, for_adapter=parts.use_adapter, dtype=parts.dtype
        )
        return LatentTextToImage(conditions=(layout,), **self.latent_parts(parts))

"""Pictures of a segmentation map."""

import dataclasses
from typing import Literal

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.layout_networks import MapConfig
from contextdiff_jax.conditions.segmentation import Segmentation, SegmentedSource
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet_over_map import UNetOverMap
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig, check_width
from contextdiff_jax.tasks.task_config import Parts, register

_MOST_LABEL = 2**16 - 1  # of a PNG of 16 bits


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationToImageConfig(DiffusionTaskConfig):
    """unet: the denoiser. The other sections: see DiffusionTaskConfig.

    labels: the numbers of the classes in the maps that `data.mask_field` names. Samples whose map
    has another are skipped, and counted. segmentation: sizes of what is learned of a map; its
    widths are the text_dim of the networks.
    """

    kind: Literal["segmentation_to_image"] = "segmentation_to_image"
    labels: tuple[int, ...]
    unet: UNetConfig
    segmentation: MapConfig = MapConfig()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The condition "segmentation", known of the config alone."""
        return (Segmentation(self.labels, self.segmentation),)

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        sizes = self.segmentation
        sizes.validate(f"{where}.segmentation")
        super().validate(where, data, use_adapter)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{where}.labels = {self.labels}: must be different numbers")
        if min(self.labels) < 0 or max(self.labels) > _MOST_LABEL:
            raise ValueError(f"{where}.labels = {self.labels}: must be numbers 0 to {_MOST_LABEL}")
        if not data.mask_field:
            raise ValueError(
                f"{where.rpartition('.')[0]}.data.mask_field is missing; {self.kind} reads it"
            )
        check_width(f"{where}.unet.text_dim", self.unet.text_dim, sizes.width)
        if not use_adapter:
            return
        check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, sizes.adapter_width)
        if data.resolution % sizes.grid:
            raise ValueError(
                f"{where}.segmentation.grid = {sizes.grid}: must divide data.resolution = "
                f"{data.resolution}"
            )

    def usable(self, source: Source) -> Source:
        """Returns the source whose maps hold places among the labels."""
        return SegmentedSource(source, self.labels)

    def build(self, parts: Parts) -> DiffusionTask:
        """Returns the task with the condition "segmentation"."""
        side = parts.data.resolution
        made = Segmentation(self.labels, self.segmentation, side, parts.use_adapter, parts.dtype)
        return DiffusionTask(
            denoiser=UNetOverMap(self.unet, dtype=parts.dtype),
            conditions=(made,),
            **self.shared_parts(parts),
        )

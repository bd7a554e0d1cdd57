"""Pictures of a layout: boxes with classes."""

import dataclasses
from typing import ClassVar, Literal, Protocol

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.layout import LaidOutSource, Layout, LayoutConfig
from contextdiff_jax.conditions.layout_tokens import PAD
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import Source
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.networks.unet_over_map import UNetOverMap
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig, check_width
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutToImageConfig(DiffusionTaskConfig):
    """unet: the denoiser. The other sections: see DiffusionTaskConfig.

    classes: names of what boxes hold, as the data has them. Samples with a box of another class, or
    with more boxes than `layout.objects`, are skipped, and counted.
    layout: sizes of what is learned of a layout; its widths are the text_dim of the networks.
    """

    scenes_measure: ClassVar[str] = "boxes"

    kind: Literal["layout_to_image"] = "layout_to_image"
    classes: tuple[str, ...]
    unet: UNetConfig
    layout: LayoutConfig = LayoutConfig()

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The condition "layout", known of the config alone."""
        return (Layout(self.classes, self.layout),)

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.layout.validate(f"{where}.layout")
        super().validate(where, data, use_adapter)
        check_layouts(self, where, data)
        check_width(f"{where}.unet.text_dim", self.unet.text_dim, self.layout.width)
        if use_adapter:
            width = self.layout.adapter_width
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, width)

    def usable(self, source: Source) -> Source:
        """Returns the source whose captions are layouts."""
        return LaidOutSource(source, self.classes, self.layout.objects)

    def build(self, parts: Parts) -> DiffusionTask:
        """Returns the task with the condition "layout"."""
        side = parts.data.resolution
        layout = Layout(self.classes, self.layout, side, parts.use_adapter, parts.dtype)
        denoiser = UNetOverMap if self.layout.map else UNet
        return DiffusionTask(
            denoiser=denoiser(self.unet, dtype=parts.dtype),
            conditions=(layout,),
            **self.shared_parts(parts),
        )


class OfLayouts(Protocol):
    """What `check_layouts` reads of a task's section."""

    kind: str
    classes: tuple[str, ...]
    layout: LayoutConfig


def check_layouts(config: OfLayouts, where: str, data: DataConfig) -> None:
    """Raises ValueError where the data hold no boxes, or the classes cannot be told apart."""
    _check_data(config.kind, f"{where.rpartition('.')[0]}.data", data)
    classes, where = config.classes, f"{where}.classes"
    if not classes:
        raise ValueError(f"{where} = (): must be one name or more")
    for name in classes:
        if not name or ";" in name or name != " ".join(name.split()):
            raise ValueError(
                f"{where} has {name!r}: must be words with one space between, without ;"
            )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ValueError(f"{where} has {twice!r} twice: must be different names")
    if config.layout.tokens == "ldm" and len(classes) > PAD:
        raise ValueError(
            f"{where} has {len(classes)} names: must be at most {PAD} for LDM's tokens"
        )


def _check_data(kind: str, where: str, data: DataConfig) -> None:
    if data.source == "shards":
        raise ValueError(
            f"{where}.source = 'shards': must be 'scenes', 'folder' or 'tfds', shards hold no "
            f"boxes, which {kind} reads"
        )
    if data.source != "scenes" and not data.boxes_field:
        raise ValueError(f"{where}.boxes_field is missing; {kind} reads it")
    if data.source == "scenes" and data.scenes.context:
        raise ValueError(
            f"{where}.scenes.context = {data.scenes.context}: must be 0, scenes in context "
            f"have no boxes, which {kind} reads"
        )

"""In-context generation in latents: Context Diffusion on the U-Net of Stable Diffusion.

The denoiser attends to [the prompt's 77 tokens, the context's]; ControlNet's branch reads the
query. Published weights know the prompt of "" for none, so what is missing or hidden stands there
as tokens: those of "", those of a black picture.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.context_images import ContextImages
from contextdiff_jax.conditions.query_image import QueryImage
from contextdiff_jax.conditions.text_or_none import TextOrNone
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.networks.controlnet import HINT_CHANNELS, ControlledLatentUNet
from contextdiff_jax.networks.latent_config import FirstStageConfig
from contextdiff_jax.system.limits import most as at_most
from contextdiff_jax.tasks.diffusion_config import check_width
from contextdiff_jax.tasks.in_context import AtTimesMissing, ContextConfig, InContextConfig
from contextdiff_jax.tasks.latent_task_config import LatentTaskConfig
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage
from contextdiff_jax.tasks.task_config import Parts, register


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentInContextConfig(LatentTaskConfig):
    """context: see there. The other sections: see LatentTaskConfig.

    hint_channels: of the convolutions that the query passes before the branch; each after the first
    halves it, so that it becomes as large as the latents. Without context.normalize the query is
    in [0, 1], as published branches read it.
    """

    scenes_measure: ClassVar[str] = "in_context"
    copies: ClassVar[Mapping[str, str]] = InContextConfig.copies

    kind: Literal["latent_in_context"] = "latent_in_context"
    context: ContextConfig = ContextConfig()
    hint_channels: tuple[int, ...] = dataclasses.field(
        default=HINT_CHANNELS, metadata=at_most(2**14)
    )

    @property
    def conditions(self) -> tuple[Condition | type[Condition], ...]:
        """The conditions "text", "context" and "query", as far as the config knows them."""
        return TextOrNone, ContextImages(self.context.most, side=1), QueryImage

    def encoders(self, use_adapter: bool) -> tuple[str, ...]:
        """Returns "text", and "clip", which reads the context."""
        return "text", "clip"

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        super().validate(where, data, use_adapter)
        self.context.validate(f"{where}.context")
        if not self.hint_channels or min(self.hint_channels) < 1:
            raise ValueError(
                f"{where}.hint_channels = {self.hint_channels}: must be numbers of at least 1"
            )
        self.context.check_data(where, data)
        if data.latents:
            raise ValueError(
                f"{where.rpartition('.')[0]}.data.latents = {data.latents!r}: must be empty, "
                "context and query are pictures"
            )

    def _check_latents(
        self, stage: FirstStageConfig, where: str, resolution: int, use_adapter: bool
    ) -> None:
        super()._check_latents(stage, where, resolution, use_adapter)
        reduction = 2 ** (len(self.hint_channels) - 1)
        if reduction != stage.reduction:
            raise ValueError(
                f"{where}.hint_channels = {self.hint_channels}: halves the query to "
                f"1/{reduction}, must be 1/{stage.reduction} as the first stage"
            )

    def build(self, parts: Parts) -> "LatentInContext":
        """Returns the task with the conditions "text", "context" and "query"."""
        where, encoders = f"{parts.where}.task", parts.encoders
        clip_text = encoders.clip_text() if parts.use_adapter else None
        text = TextOrNone(encoders.text(), clip_text=clip_text)
        width, floor = self.latent_unet.context_dim, self.context.used_floor
        check_width(f"{where}.latent_unet.context_dim", width, text.text.width)
        if clip_text is not None:
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, clip_text.width)
        context = ContextImages(
            self.context.most,
            parts.data.resolution,
            self.context.combine,
            floor,
            width,
            None if clip_text is None else clip_text.width,
            encoders.clip_image(),
            gives_null=True,
        )
        query = QueryImage(parts.data.resolution, floor, of_unit=True)
        shared = self.latent_parts(parts) | {
            "denoiser": ControlledLatentUNet(
                self.latent_unet, parts.dtype, hint_channels=self.hint_channels
            )
        }
        return LatentInContext(conditions=(text, context, query), missing=self.context, **shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentInContext(AtTimesMissing, LatentTextToImage):
    """A task in latents with the conditions "text", "context" and "query"."""

    def denoiser_reads(self, inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Returns [text, context], those of nothing where one is missing or hidden; the query."""
        null = jnp.concatenate([inputs["null"], inputs["null_context"]], axis=1)
        tokens = jnp.where(inputs["text_mask"][..., None], inputs["text"], null)
        return {"context": tokens, "hint": inputs["hint"], "hint_present": inputs["hint_present"]}

"""In-context generation: a query shows where, context pictures show how, a prompt may say both.

Context Diffusion (Najdenkoska et al. 2024), in pixels: the denoiser attends to [text, context], and
a control branch reads the query. Any of the three may be missing, in training as in requests.
latent_in_context.py has the same in latents.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.context_images import Combine, ContextImages
from contextdiff_jax.conditions.image_normalization import FLOOR
from contextdiff_jax.conditions.query_image import QueryImage
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.data.config import MOST_CONTEXT, DataConfig
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.controlnet import HINT_CHANNELS, ControlledUNet
from contextdiff_jax.system.limits import most as at_most
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionTaskConfig
from contextdiff_jax.tasks.task_config import Parts, register
from contextdiff_jax.tasks.text_to_image import text_condition
from contextdiff_jax.training.task import Batch, Metrics, Params

_MISSING = 0x7FFFFFFF  # a stream of keys beside those that `loss` splits


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """How pictures are conditions, and how often they are missing in training.

    most: of the context's pictures. combine: how the tokens of several become one picture's.
    normalize: whether context and query are brought to zero mean and unit deviation, each picture
        by itself; floor: the least deviation (pictures are in [-1, 1]) that they are divided by.
    no_prompt, no_context, no_query: shares of examples without it, for denoiser and adapter alike.
        Of the others, as many context pictures are shown as is drawn for each, one to `most`.
    """

    most: int = dataclasses.field(default=3, metadata=at_most(MOST_CONTEXT))
    combine: Combine = "sum"
    normalize: bool = True
    floor: float = dataclasses.field(default=FLOOR, metadata=at_most(1))
    no_prompt: float = dataclasses.field(default=0.5, metadata=at_most(1))
    no_context: float = dataclasses.field(default=0.1, metadata=at_most(1))
    no_query: float = dataclasses.field(default=0.1, metadata=at_most(1))

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if not 1 <= self.most <= MOST_CONTEXT:
            raise ValueError(f"{where}.most = {self.most}: must be in 1..{MOST_CONTEXT}")
        if not 0 < self.floor < 1:
            raise ValueError(f"{where}.floor = {self.floor}: must be above 0 and below 1")
        for key in ("no_prompt", "no_context", "no_query"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be in [0, 1]")

    def check_data(self, where: str, data: DataConfig) -> None:
        """Raises ValueError where the data have another number of pictures of context."""
        if data.context != self.most:
            raise ValueError(
                f"{where}.context.most = {self.most}: must be {data.context}, the pictures of "
                f"context that {where.rpartition('.')[0]}.data gives"
            )

    @property
    def used_floor(self) -> float:
        """The floor of the normalization; 0 for none."""
        return self.floor if self.normalize else 0.0


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class InContextConfig(DiffusionTaskConfig):
    """unet: the denoiser, whose encoder the query's branch is a copy of. context: see there.

    hint_channels: of the convolutions that the query passes before the branch; each after the first
    halves it, so that one leaves it at the size of the pictures.
    """

    reads_text: ClassVar[bool] = True
    scenes_measure: ClassVar[str] = "in_context"
    copies: ClassVar[Mapping[str, str]] = MappingProxyType({"denoiser/control/": "denoiser/"})

    kind: Literal["in_context"] = "in_context"
    unet: UNetConfig
    context: ContextConfig = ContextConfig()
    hint_channels: tuple[int, ...] = dataclasses.field(
        default=HINT_CHANNELS[:1], metadata=at_most(2**14)
    )

    @property
    def conditions(self) -> tuple[Condition | type[Condition], ...]:
        """The conditions "text", "context" and "query", as far as the config knows them."""
        return Text, ContextImages(self.context.most, side=1), QueryImage

    def encoders(self, use_adapter: bool) -> tuple[str, ...]:
        """Returns "text", and "clip", which reads the context."""
        return "text", "clip"

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        super().validate(where, data, use_adapter)
        self.context.validate(f"{where}.context")
        if len(self.hint_channels) != 1 or self.hint_channels[0] < 1:
            raise ValueError(
                f"{where}.hint_channels = {self.hint_channels}: must be one number, at least 1: "
                "the query is as large as the picture"
            )
        self.context.check_data(where, data)

    def build(self, parts: Parts) -> "InContextTask":
        """Returns the task with the conditions "text", "context" and "query"."""
        text = text_condition(self, parts, "unet")
        floor, side = self.context.used_floor, parts.data.resolution
        context = ContextImages(
            self.context.most,
            side,
            self.context.combine,
            floor,
            text.text.width,
            None if text.clip_text is None else text.clip_text.width,
            parts.encoders.clip_image(),
        )
        return InContextTask(
            denoiser=ControlledUNet(self.unet, parts.dtype, self.hint_channels),
            conditions=(text, context, QueryImage(side, floor)),
            missing=self.context,
            **self.shared_parts(parts),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtTimesMissing:
    """What makes the conditions of a diffusion task be missing at times; mixed into one.

    What is missing is what a request without it is: the same arrays, so the same network inputs.
    """

    missing: ContextConfig

    def described(self) -> Any:
        """Returns what decides about its pictures beside weights and encoders; repr tells it."""
        return *super().described(), self.missing

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The objective on a batch some of whose conditions are taken away."""
        batch = {**batch, **self.taken_away(batch, jax.random.fold_in(key, _MISSING))}
        return super().loss(params, frozen, batch, key)

    def taken_away(self, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the arrays of the conditions, changed where a prompt or picture is missing."""
        prompt_key, context_key, query_key, count_key = jax.random.split(key, 4)
        context, rows = batch["context"], batch["context"].shape[:1]
        most = context.shape[3]

        def shown(key: jax.Array, missing: float) -> jax.Array:
            return ~jax.random.bernoulli(key, missing, rows)

        count = jax.random.randint(count_key, rows, 1, most + 1)
        count = jnp.where(shown(context_key, self.missing.no_context), count, 0)
        kept = jnp.arange(most) < count[:, None]
        query = shown(query_key, self.missing.no_query)
        return {
            "present": batch["present"] & shown(prompt_key, self.missing.no_prompt),
            "context": jnp.where(kept[:, None, None, :, None], context, 0).astype(jnp.uint8),
            "query": jnp.where(query[:, None, None, None], batch["query"], 0).astype(jnp.uint8),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class InContextTask(AtTimesMissing, DiffusionTask):
    """A diffusion task with the conditions "text", "context" and "query"."""

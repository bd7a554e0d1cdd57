"""Sizes of the encoders, and those of the published models."""

import dataclasses
import typing
from types import MappingProxyType
from typing import Literal

from contextdiff_jax.system.limits import check_limits

Activation = Literal["quick_gelu", "gelu"]


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """The transformer blocks of one tower: sizes, activation, norm epsilon, causal or not."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Activation
    norm_eps: float
    causal: bool


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """The text tower alone, as in Stable Diffusion's text encoder; fields as in CLIPConfig."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    max_length: int
    eot_token_id: int | None
    activation: Activation
    norm_eps: float

    @property
    def stack(self) -> StackConfig:
        """The tower's transformer blocks."""
        return StackConfig(
            self.width,
            self.layers,
            self.heads,
            self.mlp_width,
            self.activation,
            self.norm_eps,
            causal=True,
        )


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers; the defaults are ViT-B/32 (151,277,313 parameters).

    text_width, text_layers, text_heads: the text transformer; heads must divide the width.
    text_mlp_width: hidden width of its MLPs; None is 4 * text_width.
    vocab_size: rows of the token table. max_length: number of text positions.
    vision_width, vision_layers, vision_heads, vision_mlp_width: the vision transformer, likewise.
    image_size: side of the square input in pixels. patch_size: side of a patch; divides it.
    projection_dim: width of the joint embedding.
    eot_token_id: the token whose first position is pooled; None pools at the largest id of each
      text, the rule of the original models (in their vocabulary that is the end of text, 49407).
    activation: of the MLPs; "quick_gelu" is x * sigmoid(1.702 x), "gelu" the exact one.
    norm_eps: epsilon of the LayerNorms.
    logit_scale_init: initial logarithm of the temperature; ln(1 / 0.07) in the paper.
    """

    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    text_mlp_width: int | None = None
    vocab_size: int = 49408
    max_length: int = 77
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_mlp_width: int | None = None
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    eot_token_id: int | None = None
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    logit_scale_init: float = 2.6592

    @property
    def text(self) -> CLIPTextConfig:
        """The text tower alone."""
        return CLIPTextConfig(
            self.text_width,
            self.text_layers,
            self.text_heads,
            self.text_mlp_width or 4 * self.text_width,
            self.vocab_size,
            self.max_length,
            self.eot_token_id,
            self.activation,
            self.norm_eps,
        )

    @property
    def vision_stack(self) -> StackConfig:
        """The transformer blocks of the vision tower."""
        return StackConfig(
            self.vision_width,
            self.vision_layers,
            self.vision_heads,
            self.vision_mlp_width or 4 * self.vision_width,
            self.activation,
            self.norm_eps,
            causal=False,
        )

    @property
    def grid(self) -> int:
        """Patches per side: image tokens are the class token and grid * grid patches."""
        return self.image_size // self.patch_size

    def validate(self, where: str = "clip") -> None:
        """Raises ValueError naming the first field (as `where`.field) that makes no model."""
        check_limits(self, where)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("eot_token_id", "norm_eps", "logit_scale_init") else 1
            if isinstance(value, (int, float)) and value < least:
                raise ValueError(f"{where}.{field.name} = {value}: must be at least {least}")
        for tower in ("text", "vision"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{where}.{tower}_heads = {heads}: must divide the width {width}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"{where}.patch_size = {self.patch_size}: must divide image_size {self.image_size}"
            )
        if self.eot_token_id is not None and self.eot_token_id >= self.vocab_size:
            raise ValueError(
                f"{where}.eot_token_id = {self.eot_token_id}: "
                f"must be below vocab_size {self.vocab_size}"
            )
        if self.activation not in typing.get_args(Activation):
            raise ValueError(
                f"{where}.activation = {self.activation!r}: "
                f"must be one of {', '.join(typing.get_args(Activation))}"
            )


def equal_towers(
    width: int, layers: int, heads: int, *, image_size: int, patch_size: int, max_length: int
) -> CLIPConfig:
    """A small CLIP, for a domain without published encoders: everything is of one width.

    Arguments as the fields of CLIPConfig.
    """
    return CLIPConfig(
        text_width=width,
        text_layers=layers,
        text_heads=heads,
        max_length=max_length,
        vision_width=width,
        vision_layers=layers,
        vision_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=width,
    )


CLIP_PRESETS = MappingProxyType(
    {
        "vit_b32": CLIPConfig(),
        "vit_b16": CLIPConfig(patch_size=16),
        "vit_l14": CLIPConfig(
            text_width=768,
            text_heads=12,
            vision_width=1024,
            vision_layers=24,
            vision_heads=16,
            patch_size=14,
            projection_dim=768,
        ),
        "tiny": CLIPConfig(
            text_width=64,
            text_layers=2,
            text_heads=4,
            vocab_size=512,
            max_length=24,
            vision_width=64,
            vision_layers=2,
            vision_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=64,
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder.

    width: of the tokens. mlp_width: of each of the two halves of the gated MLP.
    heads, head_dim: of the attention; heads * head_dim need not be the width. layers: blocks.
    vocab_size: rows of the token table (the tokenizer knows fewer; the rest is padding).
    num_buckets: even number of relative-position buckets, half of them per sign.
    max_distance: distance from which on all positions share the last bucket.
    norm_eps: epsilon of the RMS norms.
    """

    width: int
    mlp_width: int
    heads: int
    layers: int
    head_dim: int = 64
    vocab_size: int = 32128
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6

    def validate(self, where: str = "t5") -> None:
        """Raises ValueError naming the first field (as `where`.field) that makes no model."""
        check_limits(self, where)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "norm_eps" else 1
            if value < least:
                raise ValueError(f"{where}.{field.name} = {value}: must be at least {least}")
        if self.num_buckets < 4 or self.num_buckets % 2:
            raise ValueError(
                f"{where}.num_buckets = {self.num_buckets}: must be an even number from 4 on"
            )
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"{where}.max_distance = {self.max_distance}: must be above a quarter of "
                f"num_buckets = {self.num_buckets}, whose distances have buckets of their own"
            )


# Text encoders of Stable Diffusion: CLIP ViT-L/14's, 123,060,480 parameters, and OpenCLIP
# ViT-H/14's without its last block, 340,387,840.
STABLE_DIFFUSION_1_TEXT = CLIP_PRESETS["vit_l14"].text
STABLE_DIFFUSION_2_TEXT = CLIPTextConfig(
    width=1024,
    layers=23,
    heads=16,
    mlp_width=4096,
    vocab_size=49408,
    max_length=77,
    eot_token_id=None,
    activation="gelu",
    norm_eps=1e-5,
)

T5_PRESETS = MappingProxyType(
    {
        "small": T5Config(width=512, mlp_width=1024, heads=6, layers=8),
        "base": T5Config(width=768, mlp_width=2048, heads=12, layers=12),
        "large": T5Config(width=1024, mlp_width=2816, heads=16, layers=24),
        "xl": T5Config(width=2048, mlp_width=5120, heads=32, layers=24),
        "xxl": T5Config(width=4096, mlp_width=10240, heads=64, layers=24),
    }
)

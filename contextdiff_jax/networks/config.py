"""Configurations of the networks: frozen, hashable, with the paper sizes as defaults and presets.

``validate`` raises ValueError for values that cannot work, ``check_resolution`` for images that do
not fit; both name the key, its value and what is allowed.
"""

import dataclasses
import math
import typing
from typing import Literal

from contextdiff_jax.networks.config_checks import (
    check_choice,
    check_divides,
    check_even,
    check_multiple,
    check_positive,
    check_positive_tuple,
)
from contextdiff_jax.networks.dot_product_attention import Implementation
from contextdiff_jax.system.resumed import FREE


@dataclasses.dataclass(frozen=True)
class AnyUNetConfig:
    """What all denoising U-Nets have in common.

    Attributes:
      image_channels: channels of the image and of the prediction.
      groups: groups of every GroupNorm; divides the channels of every level.
      scan_blocks: scan runs of identical blocks, which cuts compile time. Other parameter shapes:
        a checkpoint fits only the setting it was made with. Leave it off on CPU, where
        convolutions inside a scan train some 40 times slower.
      remat: "blocks" recomputes each block's activations in the backward pass, saving memory.
      remat_levels: with it, the finest so many levels whose blocks do so; 0: all. A block of a
        coarse level costs as much to recompute, and keeps a quarter of the pixels.
      attention_implementation: "xla" (plain), "cudnn" (NVIDIA GPUs, bfloat16), "flash" (TPUs) or
        "auto", which takes what the platform has where sequences are long enough to gain. All
        compute the same up to rounding, so a checkpoint fits any.
    """

    image_channels: int = 3
    groups: int = 32
    scan_blocks: bool = True
    remat: Literal["none", "blocks"] = dataclasses.field(default="none", metadata=FREE)
    remat_levels: int = dataclasses.field(default=0, metadata=FREE)
    attention_implementation: Implementation = dataclasses.field(default="auto", metadata=FREE)

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the image and of the coarsest level."""
        raise NotImplementedError

    def remat_at(self, level: int) -> Literal["none", "blocks"]:
        """Returns what `remat` comes to at a level; 0 is the finest."""
        chosen = not self.remat_levels or level < self.remat_levels
        return self.remat if chosen else "none"

    def check_resolution(self, resolution: int, where: str = "resolution") -> None:
        """Raises ValueError unless images of resolution x resolution fit; `where` names the key."""
        check_multiple(where, resolution, self.reduction)

    def _validate_blocks(self, where: str, channels: tuple[int, ...], levels: tuple[int, ...]):
        check_positive(self, where, "image_channels", "groups")
        for key, allowed in (
            ("remat", ("none", "blocks")),
            ("attention_implementation", typing.get_args(Implementation)),
        ):
            check_choice(self, where, key, allowed)
        if not 0 <= self.remat_levels <= len(channels):
            raise ValueError(
                f"{where}.remat_levels = {self.remat_levels}: must be from 0 (all levels) to "
                f"{len(channels)}"
            )
        if not set(levels) <= set(range(len(channels))):
            raise ValueError(
                f"{where}.attention_levels = {levels}: must be levels from 0 to {len(channels) - 1}"
            )
        for level, number in enumerate(channels):
            check_divides(where, "groups", self.groups, number, f"channels of level {level}")


@dataclasses.dataclass(frozen=True)
class DenoiserConfig(AnyUNetConfig):
    """What the U-Nets of pixels have in common.

    Attributes beside those of AnyUNetConfig:
      text_dim: width of the incoming text tokens; None for a network without text.
      text_width: width the tokens are projected to first; None uses them as they are.
      null: what replaces a dropped prompt: a learned token or zeros.
      low_res: whether the network also receives a low-resolution image and its noise level.
    """

    text_dim: int | None = 4096
    text_width: int | None = None
    null: Literal["learned", "zeros"] = "learned"
    low_res: bool = False

    def _validate_common(self, where: str, channels: tuple[int, ...], levels: tuple[int, ...]):
        self._validate_blocks(where, channels, levels)
        check_choice(self, where, "null", ("learned", "zeros"))
        if self.text_dim is not None:
            check_positive(self, where, "text_dim")
        elif self.text_width is not None:
            raise ValueError(
                f"{where}.text_width = {self.text_width}: must be None, as text_dim is"
            )

    def _check_heads(self, where: str, key: str, channels: dict[int, int]) -> None:
        value = getattr(self, key)
        for level, number in channels.items():
            check_divides(where, key, value, number, f"channels of level {level}")
        if self.text_dim is not None:
            width = self.text_width or self.text_dim
            check_divides(where, key, value, width, "channels of the text tokens")


@dataclasses.dataclass(frozen=True)
class UNetConfig(DenoiserConfig):
    """Base U-Net (Imagen, Saharia et al. 2022, appendix F.1; ADM, Dhariwal & Nichol 2021).

    Attributes beside those of DenoiserConfig:
      width: channels of the first level. The embedding vector is 4 times as wide.
      multipliers: channels of each level in units of `width`; each level halves the resolution.
      num_blocks: ResBlocks of each level on the way down; one more on the way up.
      attention_levels: levels whose ResBlocks are followed by attention (0 is full resolution).
        The middle of the network always has attention.
      head_dim: channels of one attention head, here and in text pooling.
    """

    width: int = 512
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attention_levels: tuple[int, ...] = (1, 2, 3)
    head_dim: int = 64
    text_width: int | None = 2048

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * m for m in self.multipliers)

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the image and of the coarsest level."""
        return 2 ** (len(self.multipliers) - 1)

    def validate(self, where: str = "unet") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_positive(self, where, "width", "num_blocks", "head_dim")
        check_positive_tuple(self, where, "multipliers")
        check_even(where, "width", self.width)
        self._validate_common(where, self.channels, self.attention_levels)
        attending = sorted({*self.attention_levels, len(self.channels) - 1})
        self._check_heads(where, "head_dim", {i: self.channels[i] for i in attending})


@dataclasses.dataclass(frozen=True)
class EfficientUNetConfig(DenoiserConfig):
    """Efficient U-Net for super-resolution (Imagen, Saharia et al. 2022, appendix F.2).

    Attributes beside those of DenoiserConfig:
      channels: channels of each level. The embedding vector is 4 times as wide as the first.
      num_blocks: ResBlocks of each level, the same number down and up.
      strides: 1 or 2 for each level: step of the convolution that enters it.
      attention_levels: levels whose ResBlocks are followed by one attention block.
      heads: attention heads, here and in text pooling.
      residual: add the upsampled low-resolution image to the output, so that a network that
        predicts x0 starts from it and learns the difference. Not in Imagen; it saves a short
        training most of its steps.
    """

    channels: tuple[int, ...] = (128, 256, 512, 1024)
    num_blocks: tuple[int, ...] = (2, 4, 8, 8)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    attention_levels: tuple[int, ...] = (3,)
    heads: int = 8
    low_res: bool = True
    residual: bool = False

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the image and of the coarsest level."""
        return math.prod(self.strides)

    def validate(self, where: str = "efficient_unet") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_positive(self, where, "heads")
        check_positive_tuple(self, where, "channels", "num_blocks")
        check_even(where, "channels[0]", self.channels[0])
        for key in ("num_blocks", "strides"):
            if len(getattr(self, key)) != len(self.channels):
                raise ValueError(
                    f"{where}.{key} = {getattr(self, key)}: must have {len(self.channels)} "
                    "entries, one for each of channels"
                )
        if not set(self.strides) <= {1, 2}:
            raise ValueError(f"{where}.strides = {self.strides}: must be 1 or 2 for each level")
        if self.residual and not self.low_res:
            raise ValueError(f"{where}.residual = True: must be False without {where}.low_res")
        self._validate_common(where, self.channels, self.attention_levels)
        self._check_heads(where, "heads", {i: self.channels[i] for i in self.attention_levels})


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Context-aware adapter (ContextDiff, Yang et al., ICLR 2024): the relation r(x0, c, t).

    Attributes:
      image_channels: channels of x0 and of the relation.
      patch_size: side of the square of pixels that one query token reads and writes.
      width: width of the transformer.
      num_blocks: transformer blocks (self-attention, cross-attention to text, MLP).
      heads: attention heads.
      mlp_ratio: hidden width of the MLP in units of `width`.
      time_width: width of the time embedding.
      image_dim: width of the image encoder's tokens. None: the adapter reads none, and x0 is not
        shown to CLIP; the patches of x0 are all that it sees.
      text_dim: width of the text encoder's tokens.
      limit: s in r = s tanh(raw / s), the largest possible |r|. None leaves r unbounded: nothing in
        the training loss then stops it from growing, and samples deteriorate. Training drives |r|
        to whatever the limit is, and the larger it is the less pictures follow their prompts
        (docs/evidence.md).
      attention_implementation: as that of the denoisers.
    """

    image_channels: int = 3
    patch_size: int = 8
    width: int = 768
    num_blocks: int = 4
    heads: int = 8
    mlp_ratio: int = 4
    time_width: int = 256
    image_dim: int | None = 768
    text_dim: int = 512
    limit: float | None = 0.3
    attention_implementation: Implementation = dataclasses.field(default="auto", metadata=FREE)

    def validate(self, where: str = "adapter") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        keys = ("image_channels", "patch_size", "width", "num_blocks", "heads", "mlp_ratio")
        more = ("time_width", "text_dim")
        check_positive(self, where, *keys, *more, *("image_dim",) * (self.image_dim is not None))
        check_even(where, "time_width", self.time_width)
        check_divides(where, "heads", self.heads, self.width, "channels of width")
        check_multiple(f"{where}.width", self.width, 4)
        check_choice(self, where, "attention_implementation", typing.get_args(Implementation))
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"{where}.limit = {self.limit}: must be a positive number or None")

    def check_resolution(self, resolution: int, where: str = "resolution") -> None:
        """Raises ValueError unless images of resolution x resolution fit; `where` names the key."""
        check_multiple(where, resolution, self.patch_size)


def imagen_base() -> UNetConfig:
    """Imagen's 64x64 base model, 2.26 billion parameters."""
    return UNetConfig()


def imagen_sr() -> EfficientUNetConfig:
    """Imagen's 64 -> 256 super-resolution model, 611 million parameters."""
    return EfficientUNetConfig()


def contextdiff_adapter() -> AdapterConfig:
    """ContextDiff's adapter over CLIP ViT-B/32, 38 million parameters (190 million with CLIP)."""
    return AdapterConfig()


def small_unet(side: int, text_dim: int) -> UNetConfig:
    """A U-Net of 24 channels for pictures of 16 pixels, of a level more from 32 on."""
    return UNetConfig(
        width=24,
        multipliers=(1, 2) if side < 32 else (1, 2, 2),
        num_blocks=1,
        attention_levels=(1,) if side < 32 else (2,),
        head_dim=16,
        groups=8,
        text_dim=text_dim,
        text_width=None,
        scan_blocks=False,
    )


def small_adapter(
    width: int, num_blocks: int, *, patch_size: int, encoder_width: int
) -> AdapterConfig:
    """An adapter of `width` with heads of 32 channels over encoders.config.equal_towers."""
    return AdapterConfig(
        patch_size=patch_size,
        width=width,
        num_blocks=num_blocks,
        heads=width // 32,
        time_width=width,
        image_dim=encoder_width,
        text_dim=encoder_width,
    )

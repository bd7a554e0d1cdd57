"""Configurations of latent diffusion: the U-Net of latents, and the first stages that make them.

Sizes are those of published models; ``validate`` raises ValueError as in ``config``.
"""

import dataclasses
from typing import Literal

from contextdiff_jax.networks.config import AnyUNetConfig
from contextdiff_jax.networks.config_checks import (
    check_choice,
    check_divides,
    check_even,
    check_positive,
    check_positive_tuple,
)


@dataclasses.dataclass(frozen=True)
class LatentUNetConfig(AnyUNetConfig):
    """U-Net of latents (Rombach et al. 2022); the defaults are Stable Diffusion 1.x.

    Attributes beside those of AnyUNetConfig:
      channels: channels of each level; each halves the resolution.
      num_blocks: ResBlocks of each level on the way down; one more on the way up.
      attention_levels: levels whose ResBlocks are followed by a transformer (0 is full
        resolution). The middle always has one.
      heads: attention heads of each level; the last is also the middle's.
      depth: blocks of each transformer.
      context_dim: width of the condition's tokens.
      linear_projection: whether transformers are entered and left by linear layers, which 2.x has,
        or by 1x1 convolutions. They compute the same, files differ.
      upcast_attention: written to config.json, read by nothing here: logits are always float32.
      sample_size: side of the latents that the weights were trained at; written to config.json.
    """

    image_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    depth: int = 1
    context_dim: int = 768
    linear_projection: bool = False
    upcast_attention: bool = False
    sample_size: int = 64
    scan_blocks: bool = False

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the latents and of the coarsest level."""
        return 2 ** (len(self.channels) - 1)

    def validate(self, where: str = "latent_unet") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_positive(self, where, "num_blocks", "depth", "context_dim", "sample_size")
        check_positive_tuple(self, where, "channels", "heads")
        check_even(where, "channels[0]", self.channels[0])
        self._validate_blocks(where, self.channels, self.attention_levels)
        if len(self.heads) != len(self.channels):
            raise ValueError(
                f"{where}.heads = {self.heads}: must have {len(self.channels)} entries, one for "
                "each of channels"
            )
        for level in {*self.attention_levels, len(self.channels) - 1}:
            what = f"channels of level {level}"
            check_divides(where, "heads", self.heads[level], self.channels[level], what)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Convolutional first stage (Esser et al. 2021, Rombach et al. 2022).

    The defaults are Stable Diffusion's.

    Attributes:
      kind: "kl", whose encoder gives a Gaussian, or "vq", whose decoder takes the nearest codes.
      image_channels: channels of the pictures.
      channels: channels of each level; each halves the resolution.
      num_blocks: ResBlocks of each level of the encoder; the decoder has one more.
      attention_levels: levels whose ResBlocks are followed by attention. The middle always has it.
      latent_channels: channels of the latents, and of the codes.
      codes: number of codes; 0 for "kl".
      groups: groups of every GroupNorm; divides the channels of every level.
      scaling_factor: what latents are multiplied by before the U-Net sees them, once each way.
      sample_size: side of the pictures that the weights were trained on; written to config.json.
    """

    kind: Literal["kl", "vq"] = "kl"
    image_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    attention_levels: tuple[int, ...] = ()
    latent_channels: int = 4
    codes: int = 0
    groups: int = 32
    scaling_factor: float = 0.18215
    sample_size: int = 512

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the picture and of its latents."""
        return 2 ** (len(self.channels) - 1)

    @property
    def tiles(self) -> Literal["exact", "close", "none"]:
        """How a picture decoded in tiles compares: norms and attention see one tile each."""
        return "close"

    def validate(self, where: str = "autoencoder") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_choice(self, where, "kind", ("kl", "vq"))
        check_positive(self, where, "image_channels", "num_blocks", "latent_channels", "groups")
        check_positive(self, where, "sample_size")
        check_positive_tuple(self, where, "channels")
        levels = range(len(self.channels))
        if not set(self.attention_levels) <= set(levels):
            raise ValueError(
                f"{where}.attention_levels = {self.attention_levels}: must be levels from 0 to "
                f"{levels[-1]}"
            )
        for level, number in enumerate(self.channels):
            check_divides(where, "groups", self.groups, number, f"channels of level {level}")
        if (self.codes > 0) != (self.kind == "vq"):
            raise ValueError(
                f"{where}.codes = {self.codes}: must be "
                f"{'positive' if self.kind == 'vq' else '0'} with kind = {self.kind!r}"
            )
        if not self.scaling_factor > 0:
            raise ValueError(f"{where}.scaling_factor = {self.scaling_factor}: must be positive")


@dataclasses.dataclass(frozen=True)
class TinyAutoencoderConfig:
    """Tiny distilled first stage (TAESD and its relatives); the defaults are TAESD.

    Attributes:
      image_channels: channels of the pictures.
      latent_channels: channels of the latents.
      width: channels everywhere in between.
      encoder_blocks: blocks of each level of the encoder, the finest first; each halves the
        resolution.
      decoder_blocks: blocks of each level of the decoder, the coarsest first.
      pooled: whether the blocks of the coarsest levels begin with a normalization over the whole
        picture (TAEF2).
    """

    image_channels: int = 3
    latent_channels: int = 4
    width: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    pooled: bool = False

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the picture and of its latents."""
        return 2 ** (len(self.encoder_blocks) - 1)

    @property
    def scaling_factor(self) -> float:
        """Its latents are already in the units that the U-Net sees."""
        return 1.0

    @property
    def tiles(self) -> Literal["exact", "close", "none"]:
        """How a picture decoded in tiles compares: exact away from the seams without norms."""
        return "none" if self.pooled else "exact"

    def validate(self, where: str = "tiny_autoencoder") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_positive(self, where, "image_channels", "latent_channels", "width")
        check_positive_tuple(self, where, "encoder_blocks", "decoder_blocks")
        if len(self.encoder_blocks) != len(self.decoder_blocks):
            raise ValueError(
                f"{where}.decoder_blocks = {self.decoder_blocks}: must have "
                f"{len(self.encoder_blocks)} entries, one for each of encoder_blocks"
            )


FirstStageConfig = AutoencoderConfig | TinyAutoencoderConfig


def stable_diffusion_1() -> LatentUNetConfig:
    """Stable Diffusion 1.x, 859,520,964 parameters."""
    return LatentUNetConfig()


def stable_diffusion_2() -> LatentUNetConfig:
    """Stable Diffusion 2.1-base, 865,910,724 parameters; 2.1 upcasts, with a sample_size of 96."""
    return LatentUNetConfig(heads=(5, 10, 20, 20), context_dim=1024, linear_projection=True)


def ldm_imagenet() -> LatentUNetConfig:
    """LDM's class-conditional ImageNet model cin256-v2, 400,920,579 parameters, on VQ-f4."""
    return LatentUNetConfig(
        image_channels=3,
        channels=(192, 384, 576, 960),
        attention_levels=(1, 2, 3),
        heads=(1, 1, 1, 1),
        context_dim=512,
    )


def ldm_layout() -> LatentUNetConfig:
    """LDM's layout model of OpenImages on VQ-f4; 246,277,379 parameters, and its conditioner."""
    return LatentUNetConfig(
        image_channels=3,
        channels=(128, 256, 384, 512),
        attention_levels=(1, 2, 3),
        heads=(4, 8, 12, 16),
        depth=3,
        context_dim=512,
    )


def tiny_latent_unet() -> LatentUNetConfig:
    """A U-Net of 31 thousand parameters, for tests."""
    return LatentUNetConfig(
        channels=(16, 32, 32),
        num_blocks=1,
        attention_levels=(0, 1),
        heads=(2, 2, 2),
        groups=8,
        context_dim=24,
        sample_size=8,
    )


def kl_f8() -> AutoencoderConfig:
    """Stable Diffusion's first stage, 83,653,863 parameters."""
    return AutoencoderConfig()


def vq_f4() -> AutoencoderConfig:
    """LDM's VQ-f4 with 8192 codes, 55,322,782 parameters; its latents are not scaled."""
    return AutoencoderConfig(
        kind="vq",
        channels=(128, 256, 512),
        latent_channels=3,
        codes=8192,
        scaling_factor=1.0,
        sample_size=256,
    )


def vq_f8() -> AutoencoderConfig:
    """LDM's VQ-f8 with 16384 codes, 67,717,295 parameters; its latents are not scaled."""
    return AutoencoderConfig(
        kind="vq",
        channels=(128, 256, 256, 512),
        attention_levels=(3,),
        codes=16384,
        scaling_factor=1.0,
        sample_size=256,
    )


def taesd() -> TinyAutoencoderConfig:
    """TAESD: Stable Diffusion 1.x and 2.x latents, 1,222,532 + 1,222,531 parameters."""
    return TinyAutoencoderConfig()


def taef2() -> TinyAutoencoderConfig:
    """TAEF2: 32 latent channels, 1,338,528 + 1,338,499 parameters."""
    return TinyAutoencoderConfig(latent_channels=32, pooled=True)

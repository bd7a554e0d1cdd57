"""Control branches: a copy of a U-Net's encoder that sees a picture too (Zhang et al. 2023).

The branch reads the noisy picture, the time, the tokens and a hint (a control picture, a query),
and gives residuals for the U-Net's skips and its middle. Every residual passes a 1x1 convolution
that starts at zero, so that a new branch changes nothing, to the digit. The blocks are the U-Net's
own, by inheritance, and so are their parameters' names.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.layers import Conv, zeros
from contextdiff_jax.networks.unet import Residuals, UNet

HINT_CHANNELS = (16, 32, 96, 256)
"""Of the published branches; every step from one to the next halves the resolution."""


class HintEncoder(nn.Module):
    """Brings a hint to the size of the U-Net's first features; its last convolution starts at zero.

    Attributes:
      channels: of the convolutions; every step from one entry to the next halves the resolution.
      features: channels of the result.
      dtype: compute dtype.
    """

    channels: tuple[int, ...]
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hint: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H / 2^n, W / 2^n, features), n = len(channels) - 1."""
        h = nn.silu(Conv(self.channels[0], dtype=self.dtype, name="conv_in")(hint))
        for number, (same, more) in enumerate(zip(self.channels, self.channels[1:], strict=False)):
            h = nn.silu(Conv(same, dtype=self.dtype, name=f"blocks_{2 * number}")(h))
            last = Conv(more, stride=2, dtype=self.dtype, name=f"blocks_{2 * number + 1}")
            h = nn.silu(last(h))
        return Conv(self.features, kernel_init=zeros, dtype=self.dtype, name="conv_out")(h)


class _Branch:
    """What makes the encoder of a U-Net a branch; mixed into one with `hint_channels`."""

    def _residuals(self, h: jax.Array, conditions: tuple, hint: jax.Array) -> list[jax.Array]:
        encoder = HintEncoder(self.hint_channels, h.shape[-1], self.dtype, name="hint")
        features = encoder(hint)
        if features.shape[1:] != h.shape[1:]:
            raise ValueError(
                f"hint has shape {hint.shape}; it becomes {features.shape[1:3]}, must become "
                f"{h.shape[1:3]}, the height and width of the U-Net's features."
            )
        h, skips = self._down(h + features, conditions)
        h = self._middle(h, conditions)

        def unheard(features: jax.Array, name: str) -> jax.Array:
            settings = {"kernel_size": 1, "kernel_init": zeros, "dtype": self.dtype}
            return Conv(features.shape[-1], **settings, name=name)(features)

        residuals = [unheard(skip, f"zero_{number}") for number, skip in enumerate(skips)]
        return [*residuals, unheard(h, "zero_middle")]


class ControlNet(_Branch, LatentUNet):
    """The branch of a LatentUNet: ControlNet of Stable Diffusion 1.x and 2.x.

    Attributes beside those of LatentUNet:
      hint_channels: of the HintEncoder.
    """

    hint_channels: tuple[int, ...] = HINT_CHANNELS

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        hint: jax.Array,
        context_mask: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Returns the residuals, the middle's last.

        hint: (B, H, W, 3) in [0, 1], 2^(len(hint_channels) - 1) times as high and wide as x. The
        other arguments are those of LatentUNet; ValueError for inputs that do not fit.
        """
        return self._residuals(*self._enter(x, t, context, context_mask), hint)


class PixelControlNet(_Branch, UNet):
    """The branch of a UNet.

    Attributes beside those of UNet:
      hint_channels: of the HintEncoder.
    """

    hint_channels: tuple[int, ...] = HINT_CHANNELS[:1]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        hint: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        keep: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Returns the residuals, the middle's last.

        hint: (B, H, W, C), as large as x where hint_channels has one entry. The other arguments are
        those of UNet; ValueError for inputs that do not fit.
        """
        return self._residuals(*self._enter(x, t, text, text_mask, keep), hint)


class ControlledUNet(UNet):
    """A UNet with its branch, which is its sub-module "control"; the rest are the UNet's names.

    Attributes beside those of UNet:
      hint_channels: of the HintEncoder.
    """

    hint_channels: tuple[int, ...] = HINT_CHANNELS[:1]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        hint: jax.Array,
        hint_present: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        keep: jax.Array | None = None,
    ) -> jax.Array:
        """Returns what UNet does.

        hint: (B, H, W, C). hint_present: (B,) bool; where it is False the result is the UNet's own.
        """
        branch = PixelControlNet(self.config, self.dtype, self.hint_channels, name="control")
        residuals = shown(branch(x, t, hint, text, text_mask, keep), hint_present)
        h, conditions = self._enter(x, t, text, text_mask, keep)
        return self._rest(h, conditions, residuals)


class ControlledLatentUNet(LatentUNet):
    """A LatentUNet with its ControlNet, which is its sub-module "control".

    Attributes beside those of LatentUNet:
      hint_channels: of the HintEncoder.
    """

    hint_channels: tuple[int, ...] = HINT_CHANNELS

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        context: jax.Array,
        hint: jax.Array,
        hint_present: jax.Array,
    ) -> jax.Array:
        """Returns what LatentUNet does; hint, hint_present: as ControlledUNet has them."""
        branch = ControlNet(
            self.config, self.dtype, hint_channels=self.hint_channels, name="control"
        )
        residuals = shown(branch(x, t, context, hint), hint_present)
        h, conditions = self._enter(x, t, context)
        return self._rest(h, conditions, residuals)


def shown(residuals: Residuals, present: jax.Array) -> list[jax.Array]:
    """Returns residuals (B, ...) that are zero where present (B,) is False."""
    return [jnp.where(present[:, None, None, None], each, 0.0) for each in residuals]

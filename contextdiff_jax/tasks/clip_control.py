"""A control branch of a clip: ControlNet over its frames, each with its own hint (ControlVideo).

Self-attention of the branch sees the frames that the U-Net's does; it has no temporal parts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.encoders.controlnet_weights import ControlNetConfig
from contextdiff_jax.networks.controlnet import ControlNet
from contextdiff_jax.networks.video_config import VideoConfig
from contextdiff_jax.training.task import Params

HINTS = "hints"  # their place among what is frozen


@dataclasses.dataclass(frozen=True)
class ClipControl:
    """sizes: of the branch. video: of the U-Net; None is every frame by itself.

    scale: factor on what the branch adds. dtype: compute dtype. identity: of its weights.
    """

    sizes: ControlNetConfig
    video: VideoConfig | None
    scale: float
    dtype: Any = jnp.float32
    identity: str = ""

    @property
    def module(self) -> ControlNet:
        """The network."""
        video = self.video
        if video is not None:
            video = dataclasses.replace(video, temporal=None, temporal_conv=None)
        hints = self.sizes.hint_channels
        return ControlNet(self.sizes.unet, self.dtype, video=video, hint_channels=hints)

    def residuals(
        self, params: Params, frozen: Mapping[str, Any], *inputs: jax.Array
    ) -> list[jax.Array]:
        """Returns what the branch adds to the U-Net, for its x (F * R, ...), t and context.

        frozen: has HINTS, uint8 (F, H, W, 3), of the R rows of each frame.
        """
        hints = frozen[HINTS].astype(jnp.float32) / 255
        hints = jnp.repeat(hints, inputs[0].shape[0] // len(hints), axis=0)
        found = self.module.apply({"params": params}, *inputs, hints)
        return [(self.scale * each).astype(each.dtype) for each in found]

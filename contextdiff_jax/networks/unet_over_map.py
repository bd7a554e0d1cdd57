"""A U-Net that sees a map of its condition beside the noisy picture."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet


class UNetOverMap(nn.Module):
    """Denoiser f(x_t, t, text, map): the map's channels are joined to those of x_t.

    Attributes:
      config: of the U-Net.
      dtype: compute dtype.
    """

    config: UNetConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        condition_map: jax.Array,
        text: jax.Array | None = None,
        text_mask: jax.Array | None = None,
        keep: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts (B, H, W, C) float32; condition_map (B, H, W, D), the others as of UNet.

        Where keep is False the map is zeros. A channel of its own says so: zeros may be a map too.
        """
        kept = jnp.ones(x.shape[:1], bool) if keep is None else keep
        shown = jnp.broadcast_to(kept[:, None, None, None], (*x.shape[:3], 1))
        joined = jnp.concatenate(
            [x, jnp.where(shown, condition_map, 0.0), shown.astype(x.dtype)], axis=-1
        )
        return UNet(self.config, dtype=self.dtype, name="unet")(joined, t, text, text_mask, keep)

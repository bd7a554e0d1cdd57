"""Layers that mix the frames of clips: a gather of keys, and a convolution over time.

Frames are folded into the batch, see video_config.VideoConfig.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.activation_sharding import gathered
from contextdiff_jax.networks.layers import Initializer, parameter, zeros
from contextdiff_jax.networks.video_config import VideoConfig


def unfolded(x: jax.Array, frames: int) -> jax.Array:
    """Returns x (F * R, ...) as (F, R, ...). Raises ValueError where F does not divide its rows."""
    if x.shape[0] % frames:
        raise ValueError(
            f"a batch of {x.shape[0]} rows for clips of {frames} frames: must be a multiple"
        )
    return x.reshape(frames, -1, *x.shape[1:])


def of_frames(x: jax.Array, table: np.ndarray) -> jax.Array:
    """Returns the tokens that each frame attends to, of x (F * R, Q, ...), (F * R, n * Q, ...).

    table: (F, n), see frame_table.
    """
    rows = unfolded(x, len(table))
    taken = jnp.moveaxis(rows[table], 1, 2)  # (F, R, n, Q, ...)
    return taken.reshape(x.shape[0], -1, *x.shape[2:])


def over_time(x: jax.Array, frames: int) -> jax.Array:
    """Returns x (F * R, Q, C) as (R * Q, F, C): each position's frames in a row."""
    return unfolded(x, frames).reshape(frames, -1, x.shape[-1]).swapaxes(0, 1)


def back_in_frames(x: jax.Array, like: jax.Array) -> jax.Array:
    """Inverse of over_time, to the shape of `like` (F * R, Q, C)."""
    return x.swapaxes(0, 1).reshape(like.shape)


def _identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel (3, C, C) that takes the frame itself."""
    del key
    return jnp.zeros(shape, dtype).at[shape[0] // 2].set(jnp.eye(*shape[1:], dtype=dtype))


class TimeConv(nn.Module):
    """A convolution over three frames, zero beyond the ends.

    Attributes:
      features: output channels.
      frames: of each clip.
      kernel_init: of the kernel (3, C, features).
      use_bias: whether a bias is added.
      dtype: compute dtype.
    """

    features: int
    frames: int
    kernel_init: Initializer
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (F * R, ..., C) to (F * R, ..., features)."""
        names = (axes.KERNEL_TIME, axes.CONV_IN, axes.CONV_OUT)
        shape = (3, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, names, shape)
        kernel = gathered(kernel.astype(self.dtype), names)
        rows = unfolded(x.astype(self.dtype), self.frames)
        around = jnp.pad(rows, [(1, 1)] + [(0, 0)] * (rows.ndim - 1))
        y = sum(around[shift : shift + self.frames] @ kernel[shift] for shift in range(3))
        if self.use_bias:
            bias = parameter(self, "bias", zeros, (axes.CONV_OUT,), (self.features,))
            y = y + bias.astype(self.dtype)
        return y.reshape(*x.shape[:-1], self.features)


class TemporalConv(nn.Module):
    """What follows a 3x3 convolution in a network of clips; at first the identity.

    Attributes:
      video: how, see VideoConfig.
      dtype: compute dtype.
    """

    video: VideoConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x (F * R, H, W, C) to the same shape."""
        video, channels = self.video, x.shape[-1]
        shared = {"frames": video.frames, "dtype": self.dtype}
        if video.temporal_conv == "full":
            conv = TimeConv(channels, **shared, kernel_init=_identity, use_bias=True, name="full")
            return conv(x)
        rank = video.rank if video.rank <= channels else channels // 2
        normal = nn.initializers.normal(1 / rank)
        low = TimeConv(rank, **shared, kernel_init=normal, name="down")(x)
        return x + TimeConv(channels, **shared, kernel_init=zeros, name="up")(low)


def with_temporal_conv(x: jax.Array, video: VideoConfig | None, dtype: Any, name: str) -> jax.Array:
    """Returns the output x of a 3x3 convolution `name`, mixed over time where the clip has that.

    To be called in a compact method; the layer's name is that of the convolution and "_temporal".
    """
    if video is None or video.temporal_conv is None:
        return x
    return TemporalConv(video, dtype, name=f"{name}_temporal")(x)

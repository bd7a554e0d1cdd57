"""Dense, convolution, normalization and resampling layers shared by all networks.

Parameters are float32 and carry the logical axis names of ``axes``. ``dtype`` is the compute dtype
of matmuls and convolutions; normalization statistics, sinusoids and resizing stay in float32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors
from jax import lax

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.activation_sharding import gathered, over_batch

Initializer = Callable[..., jax.Array]
Padding = tuple[tuple[int, int], tuple[int, int]]

lecun = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def with_axes(init: Initializer, *names: str) -> Initializer:
    """Returns `init` with the logical axis `names` attached to what it creates."""
    return nn.with_logical_partitioning(init, names)


def parameter(
    module: nn.Module, name: str, init: Initializer, names: tuple[str, ...], shape: tuple[int, ...]
) -> jax.Array:
    """Returns a parameter of `module`, unboxed; where it is not there it is made, with axis names.

    As `module.param`, which for a parameter that is there traces its initializer to compare the
    shapes, half of the time of tracing a small U-Net. names: one for each axis of `shape`.

    Raises flax.errors.ScopeParamShapeError where the one that is there has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, with_axes(init, *names), shape)
    value = nn.unbox(module.get_variable("params", name))
    if np.shape(value) != shape:
        raise errors.ScopeParamShapeError(name, module.scope.path_text, np.shape(value), shape)
    return value


def _matmul(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x @ weights over the last axis of x, as one matrix product.

    Without folding, XLA contracts several axes in the gradient of the weights, which on CPU costs
    two to three times as much.
    """
    y = x.reshape(-1, x.shape[-1]) @ weights
    return y.reshape(*x.shape[:-1], weights.shape[-1])


class Dense(nn.Module):
    """Affine map of the last axis.

    Attributes:
      features: output width.
      axes: logical names of the kernel's (input, output) axes.
      use_bias: whether a bias is added.
      kernel_init: initializer of the kernel.
      dtype: compute dtype, also that of the output.
      bias_init: initializer of the bias.
    """

    features: int
    axes: tuple[str, str]
    use_bias: bool = True
    kernel_init: Initializer = lecun
    dtype: Any = jnp.float32
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., input width) to (..., features)."""
        shape = (x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, self.axes, shape)
        # Gathered in the compute dtype: half the bytes in bfloat16.
        kernel = gathered(kernel.astype(self.dtype), self.axes)
        y = _matmul(over_batch(x).astype(self.dtype), kernel)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init, self.axes[1:], (self.features,))
            y = y + bias.astype(self.dtype)
        return over_batch(y)


class Conv(nn.Module):
    """2-D convolution of NHWC images with an HWIO kernel.

    Attributes:
      features: output channels.
      kernel_size: height and width of the kernel.
      stride: step of the kernel in both directions.
      padding: ((top, bottom), (left, right)); None pads kernel_size // 2 on every side, as torch
        does. XLA's "SAME" is not used: it pads strided convolutions asymmetrically.
      use_bias: whether a bias is added.
      kernel_init: initializer of the kernel.
      dtype: compute dtype, also that of the output.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding | None = None
    use_bias: bool = True
    kernel_init: Initializer = lecun
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, C) to (B, H', W', features)."""
        half = self.kernel_size // 2
        padding = self.padding or ((half, half), (half, half))
        names = (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, axes.CONV_IN, axes.CONV_OUT)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = parameter(self, "kernel", self.kernel_init, names, shape)
        x, weights = over_batch(x).astype(self.dtype), gathered(kernel.astype(self.dtype), names)
        if self.kernel_size == self.stride == 1 and self.padding is None:
            y = _matmul(x, weights[0, 0])
        else:
            y = lax.conv_general_dilated(
                x,
                weights,
                window_strides=(self.stride, self.stride),
                padding=padding,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = parameter(self, "bias", zeros, (axes.CONV_OUT,), (self.features,))
            y = y + bias.astype(self.dtype)
        return over_batch(y)


class GroupNorm(nn.Module):
    """Group normalization over space and the channels of a group (Wu & He 2018), in float32.

    Attributes:
      groups: number of groups; must divide the channels.
      epsilon: added to the variance. torch's default, not Flax's 1e-6.
      dtype: dtype of the output.
      frames: pictures that share their statistics: rows f * R + r of one r, for f < frames.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    frames: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes x (B, H, W, C).

        `scale`, `shift` (B, C): conditioning applied after the affine, norm(x)(1 + scale) + shift.
        """
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"GroupNorm: {channels} channels cannot be split into groups={self.groups}; "
                "groups must divide the channels."
            )
        gain = parameter(self, "scale", ones, (axes.NORM,), (channels,))
        bias = parameter(self, "bias", zeros, (axes.NORM,), (channels,))
        if scale is not None:
            gain = gain * (1.0 + scale.astype(jnp.float32))
            bias = bias * (1.0 + scale.astype(jnp.float32)) + shift.astype(jnp.float32)
        # Both moments in one pass, the affine in a second: large images are bound by memory. The
        # shift, any number near the mean, keeps the squares from cancelling; its gradient is 0.
        start = lax.stop_gradient(x[:, :1, :1]).astype(jnp.float32)
        if self.frames > 1:
            start = jnp.tile(start[: len(x) // self.frames], (self.frames, 1, 1, 1))
        shifted = x.astype(jnp.float32) - start
        # Space is reduced first, groups second: the large reduction keeps channels innermost.
        mean, square = shifted.mean((1, 2)), jnp.square(shifted).mean((1, 2))
        if self.frames > 1:
            mean, square = self._over_frames(mean), self._over_frames(square)
        offset = mean + start[:, 0, 0]
        offset -= self._over_groups(offset)
        variance = self._over_groups(square - jnp.square(mean) + jnp.square(offset))
        gain = lax.rsqrt(variance + self.epsilon) * gain
        bias = bias + gain * (offset - mean)
        return (shifted * gain[:, None, None] + bias[:, None, None]).astype(self.dtype)

    def _over_frames(self, means: jax.Array) -> jax.Array:
        """Returns the mean over a clip's frames for every picture, (B, C) for (B, C)."""
        rows = means.reshape(self.frames, -1, means.shape[-1])
        return jnp.tile(rows.mean(0), (self.frames, 1))

    def _over_groups(self, means: jax.Array) -> jax.Array:
        """Returns the mean over a channel's group for every channel, (B, C) for (B, C)."""
        batch, channels = means.shape
        means = means.reshape(batch, self.groups, -1).mean(-1)
        return jnp.repeat(means, channels // self.groups, axis=1)


class LayerNorm(nn.Module):
    """Layer normalization of the last axis (Ba et al. 2016), in float32.

    Attributes:
      affine: whether a learned scale and bias follow; without it the layer has no parameters.
      epsilon: added to the variance. torch's default, not Flax's 1e-6.
      dtype: dtype of the output.
    """

    affine: bool = True
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes (..., width)."""
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        if self.affine:
            scale = parameter(self, "scale", ones, (axes.NORM,), x.shape[-1:])
            bias = parameter(self, "bias", zeros, (axes.NORM,), x.shape[-1:])
            y = y * scale + bias
        return y.astype(self.dtype)


def sinusoidal_embedding(t: jax.Array, width: int, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding of real numbers (Vaswani et al. 2017; Ho et al. 2020).

    Args:
      t: (...,) numbers, read as float32: bfloat16 cannot tell 999 from 1000.
      width: even size of the embedding.
      max_period: the slowest sinusoid's period over 2 pi is just below this.

    Returns:
      (..., width) float32: width/2 cosines, then width/2 sines.
    """
    half = width // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / half).astype(np.float32)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def upsample_nearest(x: jax.Array) -> jax.Array:
    """Doubles height and width of (B, H, W, C) by repeating pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def downsample_mean(x: jax.Array) -> jax.Array:
    """Halves height and width of (B, H, W, C), both even, by averaging 2x2 pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.astype(jnp.float32).mean((2, 4)).astype(x.dtype)


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes (B, H, W, C) bilinearly with half-pixel centres; antialiased where it shrinks.

    float32 throughout: jax.image.resize computes its weights in the dtype of its input.
    """
    shape = (x.shape[0], height, width, x.shape[-1])
    return jax.image.resize(x.astype(jnp.float32), shape, "bilinear")

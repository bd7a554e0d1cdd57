"""CLIP (Radford et al. 2021): a causal text transformer and a vision transformer, trained jointly.

Parameters of the identical blocks of a tower are stacked on a leading axis and traversed by a
scan, so that compilation time does not grow with depth. The residual stream, norms and softmax are
float32; matmuls and the patch convolution run in `dtype`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.encoders.attention import SelfAttention
from contextdiff_jax.encoders.config import CLIPConfig, CLIPTextConfig, StackConfig
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.activation_sharding import gathered
from contextdiff_jax.networks.layers import Conv, Dense, LayerNorm, with_axes

# The temperature is learned as its logarithm and kept from passing 100 (Radford et al., 2.5).
MAX_LOGIT_SCALE = math.log(100.0)

_normal = nn.initializers.normal


def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": _quick_gelu,
    "gelu": _gelu,
}


class Block(nn.Module):
    """Pre-LayerNorm transformer block, shaped for nn.scan: returns (x, x or None)."""

    config: StackConfig
    keep_hidden: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array | None]:
        """Maps the residual stream x (B, L, D) float32 to the next one."""
        width = self.config.width
        # Initial deviations of the original: residual branches shrink with depth.
        branch_std = width**-0.5 * (2 * self.config.layers) ** -0.5
        h = self._norm("layer_norm1")(x)
        x = x + SelfAttention(
            self.config.heads,
            width // self.config.heads,
            use_bias=True,
            scale=None,
            causal=self.config.causal,
            query_std=width**-0.5,
            key_value_std=width**-0.5,
            out_std=branch_std,
            dtype=self.dtype,
            name="self_attention",
        )(h)
        h = self._norm("layer_norm2")(x)
        h = Dense(
            self.config.mlp_width,
            (axes.EMBED, axes.MLP),
            kernel_init=_normal((2 * width) ** -0.5),
            dtype=self.dtype,
            name="fc1",
        )(h)
        h = _ACTIVATIONS[self.config.activation](h)
        h = Dense(
            width,
            (axes.MLP, axes.EMBED),
            kernel_init=_normal(branch_std),
            dtype=self.dtype,
            name="fc2",
        )(h)
        x = x + h
        return x, (x if self.keep_hidden else None)

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(epsilon=self.config.norm_eps, dtype=self.dtype, name=name)


def _apply_blocks(
    config: StackConfig, x: jax.Array, keep_hidden: bool, dtype: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Runs the scanned blocks, as sub-module "layers" of the calling module.

    Returns the last residual stream (B, L, D), and all layers + 1 of them, (layers + 1, B, L, D),
    where they are kept.
    """
    scanned = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=config.layers,
        metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )
    last, outputs = scanned(config, keep_hidden, dtype, name="layers")(x, None)
    return last, jnp.concatenate([x[None], outputs]) if keep_hidden else None


class TextTower(nn.Module):
    """The text transformer. Causal, so that tokens up to EOT do not depend on what pads the rest.

    Attributes:
      config: sizes.
      dtype: compute dtype.
    """

    config: CLIPTextConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, keep_hidden: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Encodes input_ids (B, L) int, L <= max_length, each row with an EOT.

        Returns the tokens after the final LayerNorm (B, L, D), the one at EOT (B, D), and with
        `keep_hidden` every residual stream (layers + 1, B, L, D), before that norm; all float32.
        """
        config = self.config
        length = input_ids.shape[-1]
        if length > config.max_length:
            raise ValueError(
                f"input_ids has {length} tokens per text; the model has {config.max_length} "
                "positions"
            )
        tokens = self.param(
            "token_embedding",
            with_axes(_normal(0.02), axes.VOCAB, axes.EMBED),
            (config.vocab_size, config.width),
        )
        positions = self.param(
            "position_embedding",
            with_axes(_normal(0.01), axes.POSITION, axes.EMBED),
            (config.max_length, config.width),
        )
        # An id outside the table becomes NaN (jnp.take's rule) instead of a wrong row.
        tokens = gathered(tokens, (axes.VOCAB, axes.EMBED))
        x = jnp.take(tokens, input_ids, axis=0).astype(jnp.float32) + positions[:length]
        x, hidden = _apply_blocks(config.stack, x, keep_hidden, self.dtype)
        x = LayerNorm(epsilon=config.norm_eps, name="final_layer_norm")(x)
        eot = _eot_positions(input_ids, config.eot_token_id)
        pooled = jnp.take_along_axis(x, eot[:, None, None], axis=1)[:, 0]
        return x, pooled, hidden


def _eot_positions(input_ids: jax.Array, eot_token_id: int | None) -> jax.Array:
    if eot_token_id is None:
        return jnp.argmax(input_ids, axis=-1)
    return jnp.argmax(input_ids == eot_token_id, axis=-1)


class VisionTower(nn.Module):
    """The vision transformer.

    Attributes:
      config: sizes.
      dtype: compute dtype.
    """

    config: CLIPConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: jax.Array, keep_hidden: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Encodes pixels (B, image_size, image_size, 3), normalized as clip_preprocess does.

        Returns the last residual stream (B, 1 + grid^2, D), class token first and patches row by
        row, its class token after the final LayerNorm (B, D), and with `keep_hidden` every
        residual stream (layers + 1, B, 1 + grid^2, D), the first after the entry norm; all float32.
        """
        config, width = self.config, self.config.vision_width
        size = config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"pixels has shape {pixels.shape}; must be (B, {size}, {size}, 3)")
        patches = Conv(
            width,
            config.patch_size,
            stride=config.patch_size,
            padding=((0, 0), (0, 0)),
            use_bias=False,
            kernel_init=_normal(0.02),
            dtype=self.dtype,
            name="patch_embedding",
        )(pixels)
        patches = patches.reshape(patches.shape[0], config.grid**2, width).astype(jnp.float32)
        table_init = _normal(width**-0.5)
        cls = self.param("class_embedding", with_axes(table_init, axes.EMBED), (width,))
        positions = self.param(
            "position_embedding",
            with_axes(table_init, axes.POSITION, axes.EMBED),
            (1 + config.grid**2, width),
        )
        cls = jnp.broadcast_to(cls, (patches.shape[0], 1, width))
        x = jnp.concatenate([cls, patches], axis=1) + positions
        x = LayerNorm(epsilon=config.norm_eps, name="pre_layer_norm")(x)
        x, hidden = _apply_blocks(config.vision_stack, x, keep_hidden, self.dtype)
        pooled = LayerNorm(epsilon=config.norm_eps, name="post_layer_norm")(x[:, 0])
        return x, pooled, hidden


class CLIP(nn.Module):
    """Both towers and their projections into the joint space.

    Attributes:
      config: sizes.
      dtype: compute dtype; parameters and outputs are float32.
    """

    config: CLIPConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        config = self.config
        self.text_model = TextTower(config.text, self.dtype)
        self.vision_model = VisionTower(config, self.dtype)
        self.text_projection = self._projection(config.text_width)
        self.visual_projection = self._projection(config.vision_width)
        self.logit_scale = self.param(
            "logit_scale", with_axes(nn.initializers.constant(config.logit_scale_init)), ()
        )

    def _projection(self, width: int) -> Dense:
        return Dense(
            self.config.projection_dim,
            (axes.EMBED, axes.CONTEXT),
            use_bias=False,
            kernel_init=_normal(width**-0.5),
            dtype=self.dtype,
        )

    def encode_text(self, input_ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes input_ids (B, L) int, each row with an EOT.

        Returns tokens (B, L, text_width) after the final LayerNorm, those after EOT to be masked,
        and embeddings (B, projection_dim), not normalized; both float32.
        """
        tokens, pooled, _ = self.text_model(input_ids)
        return tokens, self.text_projection(pooled).astype(jnp.float32)

    def encode_image(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes pixels (B, image_size, image_size, 3), normalized as clip_preprocess does.

        Returns tokens (B, 1 + grid^2, vision_width), class token first, before the final LayerNorm
        (which CLIP applies to the class token only), and embeddings (B, projection_dim), not
        normalized; both float32.
        """
        tokens, pooled, _ = self.vision_model(pixels)
        return tokens, self.visual_projection(pooled).astype(jnp.float32)

    def text_hidden_states(self, input_ids: jax.Array) -> jax.Array:
        """Returns every residual stream (text_layers + 1, B, L, width) float32."""
        return self.text_model(input_ids, keep_hidden=True)[2]

    def image_hidden_states(self, pixels: jax.Array) -> jax.Array:
        """Returns every residual stream (vision_layers + 1, B, 1 + grid^2, width) float32."""
        return self.vision_model(pixels, keep_hidden=True)[2]

    def __call__(self, input_ids: jax.Array, pixels: jax.Array) -> jax.Array:
        """Returns cosine similarities times the temperature, (images, texts) float32."""
        text = _normalized(self.encode_text(input_ids)[1])
        image = _normalized(self.encode_image(pixels)[1])
        scale = jnp.exp(jnp.minimum(self.logit_scale, MAX_LOGIT_SCALE))
        return scale * (image @ text.T)


def _normalized(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True))

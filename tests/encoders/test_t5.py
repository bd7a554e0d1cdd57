"""The T5 v1.1 encoder against transformers' torch model."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.encoders.config import T5_PRESETS
from contextdiff_jax.encoders.t5 import T5Encoder, relative_buckets
from contextdiff_jax.encoders.weights import load_t5
from contextdiff_jax.networks import axes

LENGTH = 40  # beyond the exact buckets
LENGTHS = np.array([LENGTH, 9])


@pytest.fixture(scope="module")
def inputs():
    ids = np.random.default_rng(0).integers(2, 99, (2, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < LENGTHS[:, None]
    return np.where(mask, ids, 0), mask


@pytest.fixture(scope="module")
def small(t5_folder):
    return load_t5(t5_folder)


def test_every_hidden_state_agrees_with_torch(torch_t5, small, inputs):
    import torch

    ids, mask = inputs
    config, params = small
    with torch.no_grad():
        theirs = torch_t5.encoder(
            torch.tensor(ids).long(), torch.tensor(mask).long(), output_hidden_states=True
        )
    encode = jax.jit(lambda p: T5Encoder(config).apply({"params": p}, ids, mask, keep_hidden=True))
    tokens, hidden = encode(params)
    assert hidden.shape == (4, 2, LENGTH, 32)
    # transformers replaces the last residual stream by the normalized tokens.
    expected = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
    for ours, value in zip([*hidden[:-1], tokens], expected, strict=True):
        value = value.numpy()
        assert np.abs(ours - value).max() / np.abs(value).max() < 1e-4


def test_buckets_agree_with_transformers(transformers):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = np.arange(-600, 601)
    theirs = T5Attention._relative_position_bucket(torch.tensor(relative))
    np.testing.assert_array_equal(relative_buckets(relative, 32, 128), theirs.numpy())


def test_buckets_follow_the_published_rule():
    # key - query; 16 per sign, eight exact, then logarithmic; key after query in the upper half.
    relative = np.array([0, -1, -7, -8, -127, -128, -900, 1, 7, 8, 900])
    expected = [0, 1, 7, 8, 15, 15, 15, 17, 23, 24, 31]
    np.testing.assert_array_equal(relative_buckets(relative, 32, 128), expected)


def test_padding_does_not_reach_the_tokens(small, inputs):
    ids, mask = inputs
    config, params = small
    encode = jax.jit(lambda i, m: T5Encoder(config).apply({"params": params}, i, m))
    padded = encode(ids, mask)
    np.testing.assert_array_equal(padded[1, :9], encode(np.where(mask, ids, 55), mask)[1, :9])
    np.testing.assert_allclose(padded[1:, :9], encode(ids[1:, :9], mask[1:, :9]), atol=2e-5)


def test_published_parameter_counts(transformers):
    import torch

    published = {"small": 35.3e6, "base": 109.6e6, "large": 0, "xl": 1.22e9, "xxl": 4.76e9}
    assert set(published) == set(T5_PRESETS)
    for name, config in T5_PRESETS.items():
        ids = jnp.zeros((1, 2), jnp.int32)
        params = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, ids == 0)["params"]
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(params)))
        with torch.device("meta"):
            theirs = transformers.T5EncoderModel(torch_config(transformers, config))
        assert count == sum(parameter.numel() for parameter in theirs.parameters())
        if published[name]:
            assert count == pytest.approx(published[name], rel=3e-3)


def torch_config(transformers, config):
    return transformers.T5Config(
        d_model=config.width,
        d_ff=config.mlp_width,
        num_heads=config.heads,
        num_layers=config.layers,
        feed_forward_proj="gated-gelu",
    )


def test_every_parameter_has_known_logical_axes():
    ids = jnp.zeros((1, 2), jnp.int32)
    module = T5Encoder(T5_PRESETS["small"])
    boxed = jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0)["params"]
    for box in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= set(axes.AXES)


def test_bfloat16_compute_keeps_float32_at_the_border(small, inputs):
    config, params = small
    exact = T5Encoder(config).apply({"params": params}, *inputs)
    fast = T5Encoder(config, jnp.bfloat16).apply({"params": params}, *inputs)
    assert fast.dtype == jnp.float32
    assert 1e-5 < jnp.linalg.norm(exact - fast) / jnp.linalg.norm(exact) < 0.05

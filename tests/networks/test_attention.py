"""Attention and pooling against torch; what masks hide must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.attention import AttentionPooling, MultiHeadAttention
from contextdiff_jax.networks.dot_product_attention import attend, attention_weights

RNG = np.random.default_rng(2)
X = RNG.normal(size=(3, 5, 16)).astype(np.float32)
CONTEXT = RNG.normal(size=(3, 7, 12)).astype(np.float32)
MASK = np.arange(7) < np.array([[7], [3], [1]])
EMPTY = np.array([[True] * 7, [False] * 7, [True, False] * 3 + [True]])


def test_attend_is_torch_attention(oracle):
    query, key, value = (RNG.normal(size=(3, n, 4, 8)).astype(np.float32) for n in (5, 7, 7))
    mask = jnp.asarray(MASK)
    got = attend(*map(jnp.asarray, (query, key, value)), mask)
    weights = attention_weights(*map(jnp.asarray, (query, key)), mask)
    want = oracle.functional.scaled_dot_product_attention(
        *(oracle.tensor(v).transpose(1, 2) for v in (query, key, value)),
        attn_mask=oracle.torch.tensor(MASK)[:, None, None, :],
    )
    np.testing.assert_allclose(got, want.transpose(1, 2), atol=1e-5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    assert np.all(np.asarray(weights)[~np.broadcast_to(MASK[:, None, None], weights.shape)] == 0)


def test_softmax_is_float32_for_bfloat16_inputs():
    query, key, value = (
        jnp.asarray(RNG.normal(size=(3, n, 4, 8)), jnp.bfloat16) for n in (5, 7, 7)
    )
    assert attend(query, key, value).dtype == jnp.bfloat16
    weights = attention_weights(query, key)
    exact = attention_weights(query.astype(jnp.float32), key.astype(jnp.float32))
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, exact, atol=1e-6)


@pytest.mark.parametrize("keys", ["self", "context", "both"])
def test_multi_head_attention_is_torch_s(random_params, oracle, keys):
    module = MultiHeadAttention(4, keys)
    given = () if keys == "self" else (CONTEXT, MASK)
    params = random_params(module, X, *given)
    got, nothing = module.apply({"params": params}, X, *given)
    assert nothing is None
    same, weights = module.apply({"params": params}, X, *given, return_weights=True)
    np.testing.assert_array_equal(got, same)
    want = oracle.attention(params, oracle.tensor(X), 4, keys, oracle.tensor(CONTEXT), MASK)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert weights.shape == (3, 4, 5, {"self": 5, "context": 7, "both": 12}[keys])


@pytest.mark.parametrize("keys", ["context", "both"])
def test_padding_does_not_matter_and_an_empty_prompt_is_finite(random_params, keys):
    module = MultiHeadAttention(4, keys)
    params = random_params(module, X, CONTEXT, EMPTY)
    other = np.where(EMPTY[..., None], CONTEXT, 1e4).astype(np.float32)
    outputs = [module.apply({"params": params}, X, c, EMPTY)[0] for c in (CONTEXT, other)]
    np.testing.assert_array_equal(*outputs)

    def loss(p):
        return jnp.sum(module.apply({"params": p}, X, CONTEXT, EMPTY)[0] ** 2)

    for leaf in jax.tree.leaves(jax.grad(loss)(params)):
        assert np.all(np.isfinite(leaf))


def test_pooling_is_torch_s_with_the_padding_removed(random_params, oracle):
    module = AttentionPooling(10, 4)
    for mask in (MASK, EMPTY):
        params = random_params(module, CONTEXT, mask)
        got = module.apply({"params": params}, CONTEXT, mask)
        want = oracle.pooling(params, oracle.tensor(CONTEXT), mask, 4)
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="width 16 .* heads=3"):
        MultiHeadAttention(3, "self").init(jax.random.key(0), X)

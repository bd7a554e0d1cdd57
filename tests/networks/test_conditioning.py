"""Conditioning: the null condition is one state, padding is invisible, time keeps its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.conditioning import (
    Conditioning,
    SinusoidMLP,
    TextConditioning,
    join_low_res,
)

RNG = np.random.default_rng(4)
TEXT = RNG.normal(size=(3, 6, 12)).astype(np.float32)
OTHER = RNG.normal(size=(3, 6, 12)).astype(np.float32)
MASK = np.arange(6) < np.array([[6], [2], [4]])
KEEP = np.array([True, False, True])


def text_module(**changes):
    settings = {"text_dim": 12, "text_width": 8, "pooled_width": 16, "pool_heads": 2}
    return TextConditioning(**(settings | changes))


def test_sinusoid_mlp_is_torch_s(random_params, oracle):
    module = SinusoidMLP(16, 24)
    t = np.array([1.0, 50.0, 1000.0], np.float32)
    params = random_params(module, t)
    want = oracle.sinusoid_mlp(params, t, 16)
    np.testing.assert_allclose(module.apply({"params": params}, t), want, atol=2e-4)


def test_kept_text_is_projected_and_pooled(random_params, oracle):
    module = text_module()
    params = random_params(module, 3, TEXT, MASK, KEEP)
    tokens, mask, pooled = module.apply({"params": params}, 3, TEXT, MASK, None)
    want = oracle.dense(params["project"], oracle.tensor(TEXT))
    np.testing.assert_allclose(tokens, want, atol=1e-5)
    np.testing.assert_array_equal(mask, MASK)
    want = oracle.pooling(params["pool"], want, MASK, 2)
    np.testing.assert_allclose(pooled, want, atol=2e-5)


@pytest.mark.parametrize("null", ["learned", "zeros"])
def test_dropped_text_is_one_state_whatever_the_prompt(random_params, oracle, null):
    module = text_module(null=null)
    params = random_params(module, 3, TEXT, MASK, KEEP)
    tokens, mask, pooled = module.apply({"params": params}, 3, TEXT, MASK, KEEP)
    all_null = module.apply({"params": params}, 3, None, None, None)
    swapped = module.apply({"params": params}, 3, OTHER, MASK[::-1], np.zeros(3, bool))

    np.testing.assert_array_equal(mask[1], [True] + [False] * 5)
    for got in (tokens[1, 0], swapped[0][0, 0], all_null[0][0, 0]):
        want = params["null_token"] if null == "learned" else np.zeros(8)
        np.testing.assert_array_equal(got, want)
    for got in (pooled[1], *swapped[2], *all_null[2]):
        np.testing.assert_allclose(got, pooled[1], atol=1e-6)

    kept = module.apply({"params": params}, 3, TEXT, MASK, None)
    np.testing.assert_allclose(pooled[KEEP], kept[2][KEEP], atol=1e-6)
    assert ("null_token" in params) == (null == "learned")


def test_without_projection_the_tokens_stay_as_they_are(random_params):
    module = text_module(text_width=None)
    params = random_params(module, 3, TEXT, MASK, KEEP)
    tokens, _, _ = module.apply({"params": params}, 3, TEXT, MASK, None)
    np.testing.assert_array_equal(tokens, TEXT)
    assert "project" not in params


def conditioning(dtype=jnp.float32, **changes):
    settings = {"text_dim": 12, "text_width": 8, "pool_heads": 2, "low_res": True}
    return Conditioning(sinusoids=16, features=24, dtype=dtype, **(settings | changes))


def test_embedding_is_the_sum_of_time_level_and_pooled_text(random_params, oracle):
    module = conditioning()
    t, level = np.array([1.0, 30.0, 999.0], np.float32), np.array([0.0, 0.3, 1.0], np.float32)
    params = random_params(module, t, TEXT, MASK, KEEP, level)
    embedding, _, _ = module.apply({"params": params}, t, TEXT, MASK, None, level)
    tokens = oracle.dense(params["text"]["project"], oracle.tensor(TEXT))
    want = (
        oracle.sinusoid_mlp(params["time"], t, 16)
        + oracle.sinusoid_mlp(params["aug_level"], 1000.0 * level, 16)
        + oracle.pooling(params["text"]["pool"], tokens, MASK, 2)
    )
    np.testing.assert_allclose(embedding, want, atol=3e-4)


def test_time_is_float32_under_bfloat16(random_params):
    t = np.array([999.0, 1000.0], np.float32)
    embeddings = []
    for dtype in (jnp.float32, jnp.bfloat16):
        module = conditioning(dtype, text_dim=None, text_width=None)
        params = random_params(module, t, None, None, None, t / 1000)
        embeddings.append(module.apply({"params": params}, t, None, None, None, t / 1000)[0])
    assert embeddings[1].dtype == jnp.float32
    np.testing.assert_array_equal(*embeddings)
    assert np.max(np.abs(embeddings[1][0] - embeddings[1][1])) > 0.1


def test_low_res_is_upsampled_bilinearly_beside_the_image(oracle):
    x = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
    low_res = RNG.normal(size=(2, 2, 2, 3)).astype(np.float32)
    joined = join_low_res(jnp.asarray(x), jnp.asarray(low_res), True)
    want = oracle.functional.interpolate(
        oracle.image(low_res), size=(8, 8), mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(joined[..., :3], x)
    np.testing.assert_allclose(joined[..., 3:], oracle.numpy_image(want), atol=1e-5)


def test_inputs_that_do_not_fit_are_named():
    x, t = jnp.zeros((2, 8, 8, 3)), jnp.ones(2)
    with pytest.raises(ValueError, match="low_res is missing"):
        join_low_res(x, None, True)
    with pytest.raises(ValueError, match="low_res is given"):
        join_low_res(x, x, False)
    with pytest.raises(ValueError, match=r"low_res has shape \(1, 4, 4, 3\)"):
        join_low_res(x, jnp.zeros((1, 4, 4, 3)), True)
    rng = jax.random.key(0)
    with pytest.raises(ValueError, match="aug_level is missing"):
        conditioning().init(rng, t, TEXT, MASK, KEEP, None)
    with pytest.raises(ValueError, match="aug_level is given"):
        conditioning(low_res=False).init(rng, t, TEXT, MASK, KEEP, t)
    with pytest.raises(ValueError, match="text_dim=None"):
        conditioning(text_dim=None).init(rng, t, TEXT, MASK, KEEP, t)
    with pytest.raises(ValueError, match=r"text has shape \(3, 6, 12\).*text_dim=13"):
        text_module(text_dim=13).init(rng, 3, TEXT, MASK, KEEP)

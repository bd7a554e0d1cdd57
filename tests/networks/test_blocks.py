"""ResBlock and attention block against torch; stacking: scanned equals unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.blocks import AttentionBlock, BlockStack, OutputHead, ResBlock

RNG = np.random.default_rng(3)
IMAGE = RNG.normal(size=(2, 4, 6, 8)).astype(np.float32)
EMBEDDING = RNG.normal(size=(2, 10)).astype(np.float32)
TEXT = RNG.normal(size=(2, 5, 12)).astype(np.float32)
MASK = np.array([[True] * 5, [True, True, False, False, False]])


@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("channels", [8, 16])
def test_res_block_is_torch_s(random_params, oracle, resample, channels):
    module = ResBlock(channels, groups=4, resample=resample)
    params = random_params(module, IMAGE, EMBEDDING)
    assert ("shortcut" in params) == (channels != 8)
    got = module.apply({"params": params}, IMAGE, EMBEDDING)
    want = oracle.res_block(params, oracle.image(IMAGE), 4, oracle.tensor(EMBEDDING), resample)
    np.testing.assert_allclose(got, oracle.numpy_image(want), atol=3e-5)


def test_efficient_res_block_has_no_embedding_and_always_a_shortcut(random_params, oracle):
    module = ResBlock(8, groups=4, always_project=True)
    params = random_params(module, IMAGE)
    assert set(params) == {"norm_1", "conv_1", "norm_2", "conv_2", "shortcut"}
    want = oracle.res_block(params, oracle.image(IMAGE), 4)
    got = module.apply({"params": params}, IMAGE)
    np.testing.assert_allclose(got, oracle.numpy_image(want), atol=3e-5)


@pytest.mark.parametrize("text", [None, TEXT])
def test_attention_block_is_torch_s(random_params, oracle, text):
    mask = None if text is None else MASK
    module = AttentionBlock(heads=2, groups=4)
    params = random_params(module, IMAGE, text, mask)
    got = module.apply({"params": params}, IMAGE, text, mask)
    tokens = None if text is None else oracle.tensor(text)
    want = oracle.attention_block(params, oracle.image(IMAGE), 2, 4, tokens, mask)
    np.testing.assert_allclose(got, oracle.numpy_image(want), atol=3e-5)


def test_zero_initialized_layers_make_blocks_the_identity_and_the_head_zero():
    rng = jax.random.key(0)
    res, _ = ResBlock(8, groups=4).init_with_output(rng, IMAGE, EMBEDDING)
    attn, _ = AttentionBlock(2, groups=4).init_with_output(rng, IMAGE, TEXT, MASK)
    head, _ = OutputHead(3, groups=4).init_with_output(rng, IMAGE)
    np.testing.assert_array_equal(res, IMAGE)
    np.testing.assert_array_equal(attn, IMAGE)
    np.testing.assert_array_equal(head, np.zeros((2, 4, 6, 3)))


def scanned_params(params, runs):
    """Stacks block_i of an unrolled stack into the runs (first, last) of a scanned one."""
    params = dict(params)
    for first, last in runs:
        blocks = [params.pop(f"block_{i}") for i in range(first, last + 1)]
        params[f"blocks_{first}_{last}"] = jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)
    return params


# On the way up the first and the last skip have other channels than those in between.
SKIPS = [RNG.normal(size=(2, 4, 6, c)).astype(np.float32) for c in (8, 8, 8, 8, 4)]


@pytest.mark.parametrize(
    ("x", "skips", "runs"),
    [
        (IMAGE[..., :4], None, [(1, 4)]),
        (IMAGE, None, [(0, 4)]),
        (IMAGE[..., :4], SKIPS, [(1, 3)]),
        (IMAGE, SKIPS, [(0, 3)]),
    ],
)
def test_scanned_blocks_compute_what_unrolled_blocks_do(random_params, x, skips, runs):
    block = {"channels": 8, "heads": 2, "groups": 4}
    inputs = (x, skips, EMBEDDING, TEXT, MASK)
    unrolled, scanned = BlockStack(5, block), BlockStack(5, block, scan=True, remat="blocks")
    params = random_params(unrolled, *inputs)
    stacked = scanned_params(params, runs)
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), *inputs)["params"]
    assert set(shapes) == set(stacked)

    h, outputs = unrolled.apply({"params": params}, *inputs)
    h_scanned, outputs_scanned = jax.jit(scanned.apply)({"params": stacked}, *inputs)
    np.testing.assert_allclose(h_scanned, h, atol=2e-5)
    assert len(outputs_scanned) == len(outputs) == (5 if skips is None else 0)
    for got, want in zip(outputs_scanned, outputs, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    if skips is None:
        np.testing.assert_array_equal(outputs[-1], h)


def test_each_block_up_takes_its_own_skip(random_params):
    block = {"channels": 8, "groups": 4}
    module = BlockStack(5, block, scan=True)
    params = random_params(module, IMAGE, SKIPS, EMBEDDING, None, None)

    def changed(i):
        skips = [s + (j == i) for j, s in enumerate(SKIPS)]
        return module.apply({"params": params}, IMAGE, skips, EMBEDDING, None, None)[0]

    outputs = [changed(i) for i in range(-1, 5)]
    for i, a in enumerate(outputs):
        for b in outputs[:i]:
            assert np.max(np.abs(a - b)) > 1e-2


def test_scan_and_remat_keep_the_gradients(random_params):
    block = {"channels": 8, "heads": 2, "groups": 4}
    inputs = (IMAGE, None, EMBEDDING, TEXT, MASK)
    params = random_params(BlockStack(2, block), *inputs)

    def grad(params, **settings):
        module = BlockStack(2, block, **settings)

        def loss(p):
            return jnp.sum(module.apply({"params": p}, *inputs)[0] ** 2)

        remat = settings.get("remat") == "blocks"
        assert ("remat" in str(jax.make_jaxpr(loss)(params))) == remat
        return jax.jit(jax.grad(loss))(params)

    plain = jax.tree.map(np.asarray, grad(params))
    stacked = scanned_params(plain, [(0, 1)])
    others = (
        (plain, grad(params, remat="blocks")),
        (stacked, grad(scanned_params(params, [(0, 1)]), scan=True, remat="blocks")),
    )
    # Rounding differs where XLA fuses differently.
    for want, got in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), want, got)

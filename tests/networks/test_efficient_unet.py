"""Efficient U-Net: a torch forward pass of its own, the count by arithmetic, its conditions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.config import EfficientUNetConfig, imagen_sr
from contextdiff_jax.networks.efficient_unet import EfficientUNet

TINY = EfficientUNetConfig(
    channels=(8, 16, 32),
    num_blocks=(1, 2, 2),
    strides=(1, 2, 2),
    attention_levels=(2,),
    heads=2,
    groups=4,
    text_dim=12,
    scan_blocks=False,
)
RNG = np.random.default_rng(6)
X = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32)
T = np.array([3.0, 40.0], np.float32)
CONDITIONS = {
    "text": RNG.normal(size=(2, 5, 12)).astype(np.float32),
    "text_mask": np.array([[True] * 5, [True, True, False, False, False]]),
    "keep": np.array([True, True]),
    "low_res": RNG.normal(size=(2, 4, 4, 3)).astype(np.float32),
    "aug_level": np.array([0.0, 0.7], np.float32),
}


@pytest.fixture(scope="module")
def tiny(random_params):
    """The tiny network compiled once, and its params."""
    module = EfficientUNet(TINY)
    return jax.jit(module.apply), random_params(module, X, T, **CONDITIONS)


def torch_efficient_unet(oracle, params, config):
    """Blocks down remember their outputs; the counterpart up takes them, scaled by 1/sqrt(2)."""
    conditions, functional = params["conditioning"], oracle.functional
    text, mask = oracle.tensor(CONDITIONS["text"]), CONDITIONS["text_mask"]
    emb = oracle.sinusoid_mlp(conditions["time"], T, config.channels[0])
    level = 1000 * CONDITIONS["aug_level"]
    emb = emb + oracle.sinusoid_mlp(conditions["aug_level"], level, config.channels[0])
    emb = emb + oracle.pooling(conditions["text"]["pool"], text, mask, config.heads)

    def add_embedding(name, h):
        return h + oracle.dense(params[f"{name}_embedding"], functional.silu(emb))[:, :, None, None]

    def attend(name, h, level):
        if level not in config.attention_levels:
            return h
        p = params[f"{name}_attn"]
        return oracle.attention_block(p, h, config.heads, config.groups, text, mask)

    low_res = functional.interpolate(
        oracle.image(CONDITIONS["low_res"]), size=X.shape[1:3], mode="bilinear"
    )
    h = oracle.conv(params["conv_in"], oracle.torch.cat([oracle.image(X), low_res], 1))
    skips = {}
    for level in range(len(config.channels)):
        name = f"down_{level}"
        h = oracle.conv(params[f"{name}_conv"], h, stride=config.strides[level])
        h = add_embedding(name, h)
        for i in range(config.num_blocks[level]):
            h = oracle.res_block(params[name][f"block_{i}"]["res"], h, config.groups)
            skips[level, i] = h
        h = attend(name, h, level)
    for level in reversed(range(len(config.channels))):
        name = f"up_{level}"
        h = add_embedding(name, h)
        for i in range(config.num_blocks[level]):
            skip = skips[level, config.num_blocks[level] - 1 - i] / 2**0.5
            h = oracle.torch.cat([h, skip], 1)
            h = oracle.res_block(params[name][f"block_{i}"]["res"], h, config.groups)
        h = attend(name, h, level)
        if config.strides[level] == 2:
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = oracle.conv(params[f"{name}_conv"], h)
    h = functional.silu(oracle.group_norm(params["head"]["norm"], h, config.groups))
    return oracle.numpy_image(oracle.conv(params["head"]["conv"], h))


def test_forward_is_torch_s(tiny, oracle):
    apply, params = tiny
    got = apply({"params": params}, X, T, **CONDITIONS)
    assert got.dtype == jnp.float32
    want = torch_efficient_unet(oracle, params, TINY)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.max(np.abs(want)))


def test_every_condition_acts_and_padding_does_not(tiny):
    apply, params = tiny

    def f(**changes):
        return np.asarray(apply({"params": params}, X, T, **(CONDITIONS | changes)))

    plain = f()
    for key in ("text", "low_res", "aug_level"):
        # Not a constant shift: LayerNorm would remove it from text.
        changed = f(**{key: CONDITIONS[key] + 0.3 * np.cos(CONDITIONS[key])})
        assert np.max(np.abs(changed - plain)) > 1e-3
    padding = np.where(CONDITIONS["text_mask"][..., None], CONDITIONS["text"], 9.0)
    np.testing.assert_allclose(f(text=padding.astype(np.float32)), plain, atol=1e-5)
    dropped = f(keep=np.zeros(2, bool))
    assert np.max(np.abs(dropped - plain)) > 1e-3
    again = f(keep=np.zeros(2, bool), text=-CONDITIONS["text"], text_mask=~CONDITIONS["text_mask"])
    np.testing.assert_allclose(again, dropped, atol=1e-5)
    assert apply._cache_size() == 1


def test_scanned_network_equals_the_unrolled_one(tiny):
    apply, params = tiny
    scanned = EfficientUNet(dataclasses.replace(TINY, scan_blocks=True, remat="blocks"))
    stacked = dict(params)
    for name in ("down_1", "down_2", "up_1", "up_2"):
        blocks = [params[name][f"block_{i}"] for i in range(2)]
        stacked[name] = {"blocks_0_1": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
    want = apply({"params": params}, X, T, **CONDITIONS)
    got = jax.jit(scanned.apply)({"params": stacked}, X, T, **CONDITIONS)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.max(np.abs(want)))


def test_only_the_levels_asked_for_are_recomputed(tiny):
    _, params = tiny

    def recomputed(levels):
        module = EfficientUNet(dataclasses.replace(TINY, remat="blocks", remat_levels=levels))
        apply = jax.make_jaxpr(lambda p: module.apply({"params": p}, X, T, **CONDITIONS))
        return str(apply(params)).count("remat")

    attention = [2 * (level in TINY.attention_levels) for level in range(3)]
    per_level = [2 * TINY.num_blocks[level] + attention[level] for level in range(3)]
    assert [recomputed(1), recomputed(2)] == [per_level[0], sum(per_level[:2])]
    assert recomputed(0) == sum(per_level)


def test_bfloat16_computes_in_bfloat16_and_returns_float32(tiny):
    _, params = tiny
    module = EfficientUNet(TINY, dtype=jnp.bfloat16)
    apply = jax.make_jaxpr(lambda p: module.apply({"params": p}, X, T, **CONDITIONS))(params)
    assert apply.out_avals[0].dtype == jnp.float32
    convolutions = [e for e in apply.eqns if e.primitive.name == "conv_general_dilated"]
    dtypes = [e.outvars[0].aval.dtype for e in convolutions]
    # All but the output head, which is the last.
    assert dtypes[:-1] == [jnp.bfloat16] * (len(dtypes) - 1)
    assert dtypes[-1] == jnp.float32


def test_a_new_network_predicts_zero():
    module = EfficientUNet(TINY)
    # Only what is returned is compiled: all but the head's initializers are cut away.
    init = jax.jit(lambda rng: module.init(rng, X, T, **CONDITIONS)["params"]["head"])
    for leaf in jax.tree.leaves(nn.unbox(init(jax.random.key(0))["conv"])):
        assert not np.any(leaf)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="width of x = 14: must be a multiple of 4"):
        EfficientUNet(TINY).init(jax.random.key(0), np.zeros((1, 16, 14, 3)), T[:1])


def sr_count(channels, blocks, attention_levels, text):
    """Parameters of the Efficient U-Net, from the layer formulas alone."""
    emb = 4 * channels[0]

    def linear(i, o):
        return i * o + o

    def res(i, o):
        return 2 * i + linear(9 * i, o) + 2 * o + linear(9 * o, o) + linear(i, o)

    mlp = linear(channels[0], emb) + linear(emb, emb)
    pool = 2 * text + text + 3 * linear(text, text) + linear(text, emb) + 2 * emb
    total = 2 * mlp + text + pool + linear(9 * 6, channels[0])
    for level, c in enumerate(channels):
        before = channels[max(level - 1, 0)]
        total += linear(9 * before, c) + linear(9 * c, before)
        total += 2 * linear(emb, c)
        total += blocks[level] * (res(c, c) + res(2 * c, c))
        if level in attention_levels:
            total += 2 * (2 * c + 4 * linear(c, c) + 2 * text + 2 * linear(text, c))
    return total + 2 * channels[0] + linear(9 * channels[0], 3)


@pytest.mark.parametrize("scan", [False, True])
def test_paper_size_has_the_published_number_of_parameters(scan):
    module = EfficientUNet(dataclasses.replace(imagen_sr(), scan_blocks=scan))
    params = jax.eval_shape(
        lambda rng: module.init(
            rng,
            jnp.zeros((1, 256, 256, 3)),
            jnp.ones(1),
            jnp.zeros((1, 4, 4096)),
            low_res=jnp.zeros((1, 64, 64, 3)),
            aug_level=jnp.zeros(1),
        ),
        jax.random.key(0),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
    assert count == sr_count((128, 256, 512, 1024), (2, 4, 8, 8), (3,), 4096)
    assert 570e6 < count < 630e6


def test_a_residual_network_starts_from_the_upsampled_image(oracle, random_params):
    module = EfficientUNet(dataclasses.replace(TINY, residual=True))
    params = random_params(module, X, T, **CONDITIONS)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if "head" in jax.tree_util.keystr(path) else leaf, params
    )
    upsampled = oracle.functional.interpolate(
        oracle.image(CONDITIONS["low_res"]), size=X.shape[1:3], mode="bilinear"
    )
    output = jax.jit(module.apply)({"params": silent}, X, T, **CONDITIONS)
    expected = upsampled.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(output, expected, atol=1e-5)

"""Base U-Net: a torch forward pass of its own, the parameter count by arithmetic, conditions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.config import UNetConfig, imagen_base
from contextdiff_jax.networks.unet import UNet

TINY = UNetConfig(
    width=16,
    multipliers=(1, 2),
    num_blocks=2,
    attention_levels=(1,),
    head_dim=16,
    groups=8,
    text_dim=24,
    text_width=16,
    scan_blocks=False,
)
RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
T = np.array([3.0, 40.0], np.float32)
TEXT = RNG.normal(size=(2, 5, 24)).astype(np.float32)
MASK = np.array([[True] * 5, [True, True, False, False, False]])


@pytest.fixture(scope="module")
def tiny(random_params):
    """The tiny network compiled once: a function of (x, t, text, mask, keep), and its params."""
    module = UNet(TINY)
    return jax.jit(module.apply), random_params(module, X, T, TEXT, MASK, np.ones(2, bool))


def torch_unet(oracle, params, config):
    """ADM's layout in torch: every block down pushes a skip, every block up pops one."""
    groups, heads = config.groups, [c // config.head_dim for c in config.channels]
    conditions = params["conditioning"]
    tokens = oracle.dense(conditions["text"]["project"], oracle.tensor(TEXT))
    emb = oracle.sinusoid_mlp(conditions["time"], T, config.width)
    pool_heads = config.text_width // config.head_dim
    emb = emb + oracle.pooling(conditions["text"]["pool"], tokens, MASK, pool_heads)

    def block(p, h, level):
        h = oracle.res_block(p["res"], h, groups, emb)
        if level in config.attention_levels:
            h = oracle.attention_block(p["attn"], h, heads[level], groups, tokens, MASK)
        return h

    h = oracle.conv(params["conv_in"], oracle.image(X))
    skips = [h]
    last = len(config.multipliers) - 1
    for level in range(last + 1):
        for i in range(config.num_blocks):
            h = block(params[f"down_{level}"][f"block_{i}"], h, level)
            skips.append(h)
        if level < last:
            h = oracle.res_block(params[f"down_{level}_resample"], h, groups, emb, "down")
            skips.append(h)
    h = oracle.res_block(params["middle_res_0"], h, groups, emb)
    h = oracle.attention_block(params["middle_attn"], h, heads[last], groups, tokens, MASK)
    h = oracle.res_block(params["middle_res_1"], h, groups, emb)
    for level in reversed(range(last + 1)):
        for i in range(config.num_blocks + 1):
            joined = oracle.torch.cat([h, skips.pop()], 1)
            h = block(params[f"up_{level}"][f"block_{i}"], joined, level)
        if level > 0:
            h = oracle.res_block(params[f"up_{level}_resample"], h, groups, emb, "up")
    assert not skips
    h = oracle.functional.silu(oracle.group_norm(params["head"]["norm"], h, groups))
    return oracle.numpy_image(oracle.conv(params["head"]["conv"], h))


def test_forward_is_torch_s(tiny, oracle):
    apply, params = tiny
    got = apply({"params": params}, X, T, TEXT, MASK, np.ones(2, bool))
    assert got.dtype == jnp.float32
    want = torch_unet(oracle, params, TINY)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.max(np.abs(want)))


def test_conditions_act_and_the_null_condition_hides_the_prompt(tiny):
    apply, params = tiny

    def f(t=T, text=TEXT, mask=MASK, keep=(True, True)):
        return np.asarray(apply({"params": params}, X, t, text, mask, np.array(keep)))

    plain, half = f(), f(keep=(True, False))
    assert np.max(np.abs(plain - f(t=T + 1))) > 1e-3
    assert np.max(np.abs(plain - f(text=TEXT[::-1]))) > 1e-3
    np.testing.assert_allclose(half[0], plain[0], atol=1e-5)
    assert np.max(np.abs(half[1] - plain[1])) > 1e-3
    null = f(keep=(False, False))
    np.testing.assert_allclose(f(text=-TEXT, mask=~MASK, keep=(False, False)), null, atol=1e-5)
    np.testing.assert_allclose(null[1], half[1], atol=1e-5)
    # Changed text in the padding, and a prompt of padding only.
    padding = np.where(MASK[..., None], TEXT, 100.0).astype(np.float32)
    np.testing.assert_allclose(f(text=padding), plain, atol=1e-5)
    assert np.all(np.isfinite(f(mask=np.zeros_like(MASK))))
    # Every value above ran through one compiled program.
    assert apply._cache_size() == 1


def test_scanned_network_equals_the_unrolled_one(tiny):
    apply, params = tiny
    inputs = (X, T, TEXT, MASK, np.ones(2, bool))
    scanned = UNet(dataclasses.replace(TINY, scan_blocks=True, remat="blocks"))
    # Which blocks of a level agree in their input, output and skip channels.
    runs = {"down_0": [(0, 1)], "up_1": [(0, 1)], "up_0": [(1, 2)]}
    stacked = dict(params)
    for level, pairs in runs.items():
        stacked[level] = dict(params[level])
        for first, last in pairs:
            parts = [stacked[level].pop(f"block_{i}") for i in range(first, last + 1)]
            leaves = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
            stacked[level][f"blocks_{first}_{last}"] = leaves
    shapes = jax.eval_shape(scanned.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.structure(stacked) == jax.tree.structure(nn.unbox(shapes))
    want = apply({"params": params}, *inputs)
    got = jax.jit(scanned.apply)({"params": stacked}, *inputs)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.max(np.abs(want)))


def test_only_the_levels_asked_for_are_recomputed(tiny):
    _, params = tiny

    def jaxpr(**settings):
        module = UNet(dataclasses.replace(TINY, **settings))
        inputs = (X, T, TEXT, MASK, np.ones(2, bool))
        return str(jax.make_jaxpr(lambda p: module.apply({"params": p}, *inputs))(params))

    assert "remat" not in jaxpr(remat_levels=1)
    # Level 0: the blocks down, one more up, and the resampling down to level 1 and back.
    assert jaxpr(remat="blocks", remat_levels=1).count("remat") == 2 * TINY.num_blocks + 3
    finest_two = jaxpr(remat="blocks", remat_levels=2)
    assert finest_two == jaxpr(remat="blocks") and "remat" in finest_two


def test_every_parameter_and_low_res_are_used(random_params):
    one_level = {"multipliers": (1,), "attention_levels": (), "num_blocks": 1}
    module = UNet(dataclasses.replace(TINY, **one_level, low_res=True))
    inputs = {
        "text": TEXT,
        "text_mask": MASK,
        "keep": np.array([True, False]),
        "low_res": X[:, ::2, ::2],
        "aug_level": T / 100,
    }
    params = random_params(module, X, T, **inputs)

    @jax.jit
    def grads(params, low_res, aug_level):
        def loss(params, low_res, aug_level):
            changed = inputs | {"low_res": low_res, "aug_level": aug_level}
            return jnp.mean(module.apply({"params": params}, X, T, **changed) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2))(params, low_res, aug_level)

    found = grads(params, inputs["low_res"], inputs["aug_level"])
    assert all(np.any(g) for g in jax.tree.leaves(found))


def test_without_text(random_params):
    module = UNet(dataclasses.replace(TINY, num_blocks=1, text_dim=None, text_width=None))
    params = random_params(module, X, T)
    assert "text" not in params["conditioning"]
    assert "context_key" not in params["middle_attn"]["attention"]
    assert np.all(np.isfinite(jax.jit(module.apply)({"params": params}, X, T)))


def test_a_new_network_predicts_zero():
    module = UNet(TINY)
    # Only what is returned is compiled: all but the head's initializers are cut away.
    init = jax.jit(lambda rng: module.init(rng, X, T, TEXT)["params"]["head"])
    for leaf in jax.tree.leaves(nn.unbox(init(jax.random.key(0))["conv"])):
        assert not np.any(leaf)


def test_bfloat16_computes_in_bfloat16_and_tells_neighbouring_timesteps_apart(tiny):
    apply, params = tiny
    module = UNet(TINY, dtype=jnp.bfloat16)
    dtypes = {
        leaf.dtype
        for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), X, T, TEXT))
    }
    assert dtypes == {jnp.dtype(jnp.float32)}
    program = str(jax.make_jaxpr(module.apply)({"params": params}, X, T, TEXT))
    assert program.count("bf16[3,3,16,16]") > 0

    half, times = jax.jit(module.apply), [np.full(2, t, np.float32) for t in (999, 1000)]
    conditions = (TEXT, MASK, np.ones(2, bool))
    a, b = (half({"params": params}, X, t, *conditions) for t in times)
    exact_a, exact_b = (apply({"params": params}, X, t, *conditions) for t in times)
    assert a.dtype == jnp.float32

    def rms(x):
        return np.sqrt(np.mean(np.square(x)))

    assert rms(a - exact_a) < 0.05 * rms(exact_a)
    assert rms(exact_a - exact_b) > 0.02 * rms(exact_a)
    np.testing.assert_allclose(rms(a - b), rms(exact_a - exact_b), rtol=0.3)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="height of x = 9: must be a multiple of 2"):
        UNet(TINY).init(jax.random.key(0), np.zeros((1, 9, 8, 3)), T[:1])


def base_count(width, multipliers, blocks, attention_levels, text_dim, text):
    """Parameters of the base U-Net, from the layer formulas alone."""
    channels, emb = [width * m for m in multipliers], 4 * width

    def linear(i, o):
        return i * o + o

    def res(i, o):
        shortcut = linear(i, o) if i != o else 0
        return 2 * i + linear(9 * i, o) + linear(emb, 2 * o) + 2 * o + linear(9 * o, o) + shortcut

    def attention(c):
        return 2 * c + 4 * linear(c, c) + 2 * text + 2 * linear(text, c)

    total = linear(width, emb) + linear(emb, emb) + linear(27, width)
    pool = 2 * text + text + 3 * linear(text, text) + linear(text, emb) + 2 * emb
    total += linear(text_dim, text) + text + pool
    skips, c = [width], width
    for level, out in enumerate(channels):
        for _ in range(blocks):
            total += res(c, out) + (attention(out) if level in attention_levels else 0)
            c = out
            skips.append(c)
        if out != channels[-1]:
            total += res(c, c)
            skips.append(c)
    total += 2 * res(c, c) + attention(c)
    for level, out in reversed(list(enumerate(channels))):
        for _ in range(blocks + 1):
            total += res(c + skips.pop(), out) + (
                attention(out) if level in attention_levels else 0
            )
            c = out
        total += res(c, c) if level else 0
    return total + 2 * c + linear(9 * c, 3)


@pytest.mark.parametrize("scan", [False, True])
def test_paper_size_has_the_published_number_of_parameters(scan):
    module = UNet(dataclasses.replace(imagen_base(), scan_blocks=scan))
    inputs = (jnp.zeros((1, 64, 64, 3)), jnp.ones(1), jnp.zeros((1, 4, 4096)))
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
    assert count == base_count(512, (1, 2, 3, 4), 3, (1, 2, 3), 4096, 2048)
    assert 2.1e9 < count < 2.3e9


def test_scan_cuts_the_program():
    def convolutions(scan):
        config = dataclasses.replace(TINY, num_blocks=3, scan_blocks=scan)
        program = jax.make_jaxpr(lambda rng: nn.unbox(UNet(config).init(rng, X, T, TEXT)))
        return str(program(jax.random.key(0))).count("conv_general_dilated[")

    assert convolutions(True) < 0.75 * convolutions(False)

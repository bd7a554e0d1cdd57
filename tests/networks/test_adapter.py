"""Adapter: a torch forward pass of its own, the bound, masks, maps, gradients, the count."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks.adapter import Adapter, grid_positions, patchify, unpatchify
from contextdiff_jax.networks.config import AdapterConfig, contextdiff_adapter

TINY = AdapterConfig(
    patch_size=4,
    width=32,
    num_blocks=2,
    heads=4,
    mlp_ratio=2,
    time_width=16,
    image_dim=24,
    text_dim=20,
    limit=0.7,
)
RNG = np.random.default_rng(7)
X0 = RNG.uniform(-1, 1, (3, 8, 12, 3)).astype(np.float32)
T = np.array([1.0, 20.0, 1000.0], np.float32)
IMAGE_TOKENS = RNG.normal(size=(3, 1 + 49, 24)).astype(np.float32)
TEXT_TOKENS = RNG.normal(size=(3, 5, 20)).astype(np.float32)
MASK = np.arange(5) < np.array([[5], [2], [0]])
INPUTS = (X0, T, IMAGE_TOKENS, TEXT_TOKENS, MASK)


@pytest.fixture(scope="module")
def tiny(random_params):
    """The tiny adapter compiled once, with maps, and its params."""
    module = Adapter(TINY)
    params = random_params(module, *INPUTS)
    return jax.jit(lambda p, *inputs: module.apply({"params": p}, *inputs, True)), params


def torch_adapter(oracle, params, config):
    torch, functional = oracle.torch, oracle.functional
    size, (rows, columns) = config.patch_size, (2, 3)
    # Patches by unfolding: torch orders a patch (C, h, w), ours (h, w, C).
    patches = functional.unfold(oracle.image(X0), size, stride=size).transpose(1, 2)
    patches = patches.reshape(3, 6, 3, size * size).transpose(2, 3).reshape(3, 6, -1)
    image = oracle.layer_norm(params["image_norm"], oracle.tensor(IMAGE_TOKENS))[:, 1:]
    image = image.transpose(1, 2).reshape(3, 24, 7, 7)
    image = functional.interpolate(
        image, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True
    )
    h = oracle.dense(params["patches"], patches)
    h = h + oracle.dense(params["image"], image.flatten(2).transpose(1, 2))
    h = h + oracle.tensor(grid_positions(rows, columns, config.width))
    time = functional.silu(oracle.sinusoid_mlp(params["time"], T, config.time_width))
    shared = oracle.dense(params["modulation"], time).reshape(3, 6, config.width)
    text = oracle.tensor(TEXT_TOKENS)
    for i in range(config.num_blocks):
        p = params[f"block_{i}"]
        m = shared + oracle.tensor(p["modulation"])

        def norm(h, j, m=m):
            return oracle.layer_norm(None, h) * (1 + m[:, None, 2 * j]) + m[:, None, 2 * j + 1]

        h = h + oracle.attention(p["self"], norm(h, 0), config.heads, "self")
        # torch gives zeros where a row has no key at all: an empty prompt adds only the bias.
        h = h + oracle.attention(p["cross"], norm(h, 1), config.heads, "context", text, MASK)
        h = h + oracle.dense(p["mlp_out"], functional.gelu(oracle.dense(p["mlp_in"], norm(h, 2))))
    raw = oracle.dense(params["out"], oracle.layer_norm(params["norm_out"], h))
    raw = raw.reshape(3, 6, size * size, 3).transpose(2, 3).reshape(3, 6, -1).transpose(1, 2)
    raw = functional.fold(raw, X0.shape[1:3], size, stride=size)
    return oracle.numpy_image(config.limit * torch.tanh(raw / config.limit))


def test_forward_is_torch_s(tiny, oracle):
    apply, params = tiny
    relation, _ = apply(params, *INPUTS)
    assert relation.dtype == jnp.float32
    np.testing.assert_allclose(relation, torch_adapter(oracle, params, TINY), atol=2e-4)


def test_a_new_adapter_is_zero_and_everything_learns_once_its_last_layer_moves():
    module = Adapter(dataclasses.replace(TINY, num_blocks=1))
    params = nn.unbox(jax.jit(module.init)(jax.random.key(0), *INPUTS))["params"]

    @jax.jit
    def grads(p):
        return jax.grad(lambda q: jnp.sum(module.apply({"params": q}, *INPUTS) * X0))(p)

    relation = jax.jit(module.apply)({"params": params}, *INPUTS)
    np.testing.assert_array_equal(relation, np.zeros_like(X0))
    first = grads(params)
    assert np.all(np.any(np.asarray(first["out"]["kernel"]), axis=1))
    params["out"] = jax.tree.map(lambda p, g: p + 0.1 * g, params["out"], first["out"])
    flat = jax.tree_util.tree_flatten_with_path(grads(params))[0]
    largest = max(np.max(np.abs(g)) for _, g in flat)
    still = {
        jax.tree_util.keystr(path[-2:]) for path, g in flat if np.max(np.abs(g)) < 1e-6 * largest
    }
    # Softmax does not change when all logits move together: a key's bias never has a gradient.
    assert still == {"['key']['bias']", "['context_key']['bias']"}


@pytest.mark.parametrize("limit", [0.25, 1.0, None])
def test_relation_is_bounded_by_s_and_only_then(random_params, limit):
    module = Adapter(dataclasses.replace(TINY, limit=limit))
    params = random_params(module, *INPUTS)
    params["out"] = jax.tree.map(lambda p: 100 * p, params["out"])
    largest = np.max(np.abs(module.apply({"params": params}, *INPUTS)))
    if limit is None:
        assert largest > 10
    else:
        assert 0.99 * limit < largest <= limit


def test_padding_does_not_matter_and_maps_are_distributions_over_the_real_tokens(tiny):
    apply, params = tiny
    relation, maps = apply(params, *INPUTS)
    padding = np.where(MASK[..., None], TEXT_TOKENS, 50.0).astype(np.float32)
    again, _ = apply(params, X0, T, IMAGE_TOKENS, padding, MASK)
    np.testing.assert_array_equal(relation, again)
    assert maps.shape == (3, TINY.num_blocks, TINY.heads, 6, 5)
    np.testing.assert_allclose(maps[:2].sum(-1), 1.0, atol=1e-5)
    assert not np.any(maps[1, ..., 2:])
    assert np.all(np.isfinite(relation))
    assert not np.any(maps[2])


def test_every_input_acts_and_the_cls_token_does_not(tiny):
    apply, params = tiny
    relation, maps = apply(params, *INPUTS)
    for i, value in enumerate((-X0, T + 1, IMAGE_TOKENS[..., ::-1], TEXT_TOKENS[..., ::-1])):
        changed = [*INPUTS[:i], value, *INPUTS[i + 1 :]]
        assert np.max(np.abs(apply(params, *changed)[0] - relation)[:2]) > 1e-4
    tokens = IMAGE_TOKENS.copy()
    tokens[:, 0] = 7.0
    np.testing.assert_array_equal(apply(params, X0, T, tokens, *INPUTS[3:])[0], relation)
    assert apply._cache_size() == 1


def test_relation_is_local_in_rows_and_columns():
    """A patch written by one query token lands where that token was read."""
    x = np.arange(2 * 8 * 12 * 3, dtype=np.float32).reshape(2, 8, 12, 3)
    patches = patchify(jnp.asarray(x), 4)
    for row in range(2):
        for column in range(3):
            want = x[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].reshape(2, -1)
            np.testing.assert_array_equal(patches[:, 3 * row + column], want)
    np.testing.assert_array_equal(unpatchify(patches, 8, 12, 4), x)


def test_positions_tell_rows_from_columns_at_every_grid():
    for rows, columns in ((2, 3), (32, 32)):
        positions = np.asarray(
            jax.jit(grid_positions, static_argnums=(0, 1, 2))(rows, columns, 64)
        ).reshape(rows, columns, 64)
        np.testing.assert_array_equal(positions[:, :1, :32], positions[:, 1:2, :32])
        np.testing.assert_array_equal(positions[:1, :, 32:], positions[1:2, :, 32:])
        flat = positions.reshape(-1, 64)
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
        assert np.min(distances + 10 * np.eye(len(flat))) > 0.1


def test_bfloat16_stays_near_float32_and_tells_neighbouring_timesteps_apart(tiny):
    apply, params = tiny
    module = Adapter(TINY, dtype=jnp.bfloat16)
    half = jax.jit(module.apply)
    relation = half({"params": params}, *INPUTS)
    assert relation.dtype == jnp.float32
    assert 0 < np.max(np.abs(relation - apply(params, *INPUTS)[0])) < 0.1
    neighbour = half({"params": params}, X0, T - np.array([0, 0, 1.0], np.float32), *INPUTS[2:])
    assert np.max(np.abs(neighbour - relation)[2]) > 1e-3


def test_inputs_that_do_not_fit_are_named():
    def init(**changes):
        names = ("x0", "t", "image_tokens", "text_tokens", "text_mask")
        Adapter(TINY).init(jax.random.key(0), **(dict(zip(names, INPUTS, strict=True)) | changes))

    with pytest.raises(ValueError, match="width of x0 = 10: must be a multiple of 4"):
        init(x0=X0[:, :, :10])
    with pytest.raises(ValueError, match="channels of x0 = 1: must be 3"):
        init(x0=X0[..., :1])
    with pytest.raises(ValueError, match="image_tokens = 49 tokens: must be 1 [+] g"):
        init(image_tokens=IMAGE_TOKENS[:, 1:])
    with pytest.raises(ValueError, match="width of image_tokens = 23: must be 24"):
        init(image_tokens=IMAGE_TOKENS[..., 1:])
    with pytest.raises(ValueError, match="width of text_tokens = 19: must be 20"):
        init(text_tokens=TEXT_TOKENS[..., 1:])


def test_paper_size_has_the_published_number_of_parameters():
    def linear(i, o):
        return i * o + o

    # Four projections in self- and cross-attention, keys and values of the latter from the text.
    width, text, time = 768, 512, 256
    self_attention = 4 * linear(width, width)
    cross_attention = 2 * linear(width, width) + 2 * linear(text, width) + 2 * text
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    want = 4 * (self_attention + cross_attention + mlp + 6 * width)
    want += 2 * linear(time, time) + linear(time, 6 * width)
    want += linear(8 * 8 * 3, width) + 2 * 768 + linear(768, width)
    want += 2 * width + linear(width, 8 * 8 * 3)
    module = Adapter(contextdiff_adapter())
    params = jax.eval_shape(
        lambda rng: module.init(
            rng,
            jnp.zeros((1, 64, 64, 3)),
            jnp.ones(1),
            jnp.zeros((1, 50, 768)),
            jnp.zeros((1, 77, 512)),
        ),
        jax.random.key(0),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))
    assert count == want
    # The paper gives 188 M together with CLIP ViT-B/32's 151,277,313.
    assert 36.7e6 < count < 40e6

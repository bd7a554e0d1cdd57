"""Layouts as a condition: painted against loops, LDM's form against torch and hand-made tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from contextdiff_jax.conditions.layout import Layout, LayoutConfig
from contextdiff_jax.conditions.layout_networks import LayoutTokens, ObjectTokens, paint
from contextdiff_jax.conditions.layout_tokens import PAD, corner_token, layout_tokens
from contextdiff_jax.conditions.requests import check_requests
from contextdiff_jax.data.boxes import Box
from contextdiff_jax.encoders.layout_weights import (
    PREFIX,
    layout_transformer_params,
    layout_transformer_tensors,
)
from contextdiff_jax.encoders.tensor_files import open_file
from contextdiff_jax.networks.layout_transformer import LayoutTransformer, LayoutTransformerConfig

CLASSES = ("cat", "dog", "10", "9")
SIZES = LayoutConfig(
    objects=3,
    width=16,
    layers=1,
    heads=2,
    painted=6,
    adapter_width=16,
    grid=8,
    channels=8,
    groups=4,
)
LAYOUT = Layout(CLASSES, SIZES, side=8)
TWO = "cat 0 0 0.5 0.5; dog 0.25 0.3 1 0.9"


def random(shapes, seed=0):
    """Parameters of abstract shapes; none of them is zero."""
    rng = np.random.default_rng(seed)
    fill = lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(fill, nn.unbox(shapes))


def test_paint_against_a_loop_over_subpixels():
    side, fine = 6, 20
    rng = np.random.default_rng(0)
    # Two that overlap, in whole subpixels, and one that is not real.
    boxes = np.array([[0.1, 0.1, 0.65, 0.7], [0.4, 0.35, 0.95, 0.9], [0.5, 0, 0.9, 0.8]])
    vectors = rng.standard_normal((3, 2)).astype(np.float32)
    painted = np.asarray(paint(vectors[None], boxes[None], np.array([[True, True, False]]), side))
    centres = (np.arange(side * fine) + 0.5) / (side * fine)
    total, colour = np.zeros((side * fine, side * fine)), np.zeros((side * fine, side * fine, 2))
    for (x0, y0, x1, y1), vector in list(zip(boxes, vectors, strict=True))[:2]:
        inside = np.outer((y0 < centres) & (centres < y1), (x0 < centres) & (centres < x1))
        total += inside
        colour += inside[..., None] * vector

    def pooled(values):
        return values.reshape(side, fine, side, fine, -1).mean((1, 3))

    share, colour = pooled(total)[..., 0], pooled(colour)
    expected = colour / np.maximum(share, 1)[..., None]
    np.testing.assert_allclose(painted[0, ..., :2], expected, atol=1e-5)
    np.testing.assert_allclose(painted[0, ..., 2], np.minimum(share, 1), atol=1e-5)


def test_edges_and_places_of_a_painted_box():
    vectors, box = jnp.ones((1, 1, 1)), jnp.array([[[0.25, 0.25, 0.75, 1.0]]])
    *_, edge, x, y = np.moveaxis(
        np.asarray(paint(vectors, box, jnp.ones((1, 1), bool), 8))[0], 2, 0
    )
    expected = np.zeros((8, 8))
    expected[2:, 2:6] = 1
    expected[3:7, 3:5] = 0
    np.testing.assert_allclose(edge, expected, atol=1e-6)
    np.testing.assert_allclose(x[4, 2:6], [-0.75, -0.25, 0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(y[2:, 3], (2 * np.arange(6) + 1) / 6 - 1, atol=1e-6)


@pytest.fixture(scope="module")
def encode():
    """Returns encode(values) -> Given, with random parameters, in both forms of tokens."""
    params = random(jax.eval_shape(LAYOUT.init, jax.random.key(0)))
    program = jax.jit(lambda batch: LAYOUT.encode(params, {}, batch))
    return lambda values: jax.device_get(program(LAYOUT.collate(values)))


def test_order_and_padding_change_nothing(encode):
    a, b = "cat 0 0 0.5 0.5", "dog 0.25 0.3 1 0.9"
    given = encode([f"{a}; {b}", f"{b}; {a}", a])
    tokens, adapter = given.tokens, given.adapter_tokens
    np.testing.assert_allclose(tokens[0, :2], tokens[1, 1::-1], atol=1e-5)
    assert given.mask.tolist() == [[True, True, False]] * 2 + [[True, False, False]]
    np.testing.assert_allclose(adapter[0], adapter[1], atol=1e-5)
    layout = given.inputs["condition_map"]
    np.testing.assert_allclose(layout[0], layout[1], atol=1e-6)
    for part in (adapter, layout):  # and the second object is seen
        assert np.abs(part[0] - part[2]).max() > 1e-3
    assert np.abs(tokens[0, 0] - tokens[2, 0]).max() > 1e-3


def test_no_object_is_a_layout_and_no_layout_is_none(encode):
    given = encode([";", "", []])
    assert given.present.tolist() == [True, False, True]
    assert all(np.isfinite(part).all() for part in (given.adapter_tokens, given.tokens))
    assert not given.mask.any() and given.adapter_mask.all()
    assert (given.inputs["condition_map"] == 0).all()


def test_tokens_of_the_adapter_are_as_many_and_as_large_as_said():
    """About 12 M parameters at the default sizes: shared/reference, section D."""
    zeros = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    module = LayoutTokens(100, LayoutConfig())
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), *zeros))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(12.2, abs=0.9)
    assert jax.eval_shape(module.apply, shapes, *zeros).shape == (1, 64, 512)


def test_the_denoiser_has_its_part_without_the_adapter():
    whole = nn.unbox(jax.eval_shape(LAYOUT.init, jax.random.key(0)))
    alone = nn.unbox(jax.eval_shape(LAYOUT.without_adapter().init, jax.random.key(0)))
    assert set(whole) == {"denoiser", "adapter"} and alone == {"denoiser": whole["denoiser"]}
    no_map = dataclasses.replace(LAYOUT, config=dataclasses.replace(SIZES, map=False))
    assert set(jax.eval_shape(no_map.init, jax.random.key(0))["denoiser"]) == {"tokens"}


def test_every_class_has_vectors_of_its_own():
    module = ObjectTokens(4, 8, 0, 1)
    arrays = jnp.arange(4)[None], jnp.zeros((1, 4, 4)), jnp.ones((1, 4), bool)
    params = random(jax.eval_shape(module.init, jax.random.key(0), *arrays))
    tokens = np.asarray(module.apply(params, *arrays))[0]
    assert min(np.abs(tokens[i] - tokens[j]).max() for i in range(4) for j in range(i)) > 1e-3


def test_an_objects_tokens_are_those_over_its_box():
    """The adapter's tokens of a grid of 16 are 4 x 4."""
    layout = dataclasses.replace(LAYOUT, config=dataclasses.replace(SIZES, grid=16))
    found = layout.adapter_places("cat 0 0 0.5 0.25; dog 0.5 0.5 1 1; cat 0.26 0.99 0.3 1")
    assert found == {"cat": [0, 1], "dog": [10, 11, 14, 15], "cat 3": [13]}
    assert layout.adapter_places(";") == {}


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("cow 0 0 1 1", "'cow' must be one of cat, dog, 10, 9"),
        ("dgo 0 0 1 1", "'dgo' must be .*; did you mean dog"),
        ("; ".join(["cat 0 0 1 1"] * 4), "has 4 objects: must be at most 3"),
        ("cat 0 0 1.5 1", "must lie within the picture"),
        ("cat 0.5 0 0.5 1", "must have x0 < x1 and y0 < y1"),
        ([{"name": "cat", "box": [0.9, 0, 0.5, 1]}], "must have x0 < x1"),
        ([{"name": "cat"}], "must be .*x0, y0, x1, y1"),
        (7, "must be a text, or a list of objects"),
    ],
)
def test_requests_that_are_no_layout(value, sentence):
    with pytest.raises(ValueError, match=f"request 1 has layout = .*{sentence}"):
        check_requests([{"layout": value}], [LAYOUT])
    with pytest.raises(ValueError, match=f"layout .*{sentence}"):
        LAYOUT.collate([value])


def test_requests_with_and_without_a_layout():
    boxes = [{"name": "cat", "box": [0, 0, 1, 1], "area": 1.0}]
    check_requests([{"layout": TWO}, {"layout": None}, {"layout": boxes}], [LAYOUT])
    with pytest.raises(ValueError, match="request 1 lacks 'layout': must name layout"):
        check_requests([{}], [LAYOUT])


# -- LDM's form --------------------------------------------------------------------------------


def test_ldm_tokens_against_a_table_made_by_hand():
    """Places are sorted as strings: 10, 9, cat, dog. 0.5 * 89 = 44.5 rounds to the even 44."""
    boxes = [
        Box("dog", (0, 0, 1, 1)),
        Box("9", (0.5, 0.25, 0.75, 0.5)),
        Box("cat", (0, 0, 0.1, 0.1)),
    ]
    found = layout_tokens(boxes, CLASSES, most=4)
    dog, nine, cat = [3, 0, 8099], [1, 44 + 90 * 22, 67 + 90 * 44], [2, 0, 9 + 90 * 9]
    assert found.tolist() == [*dog, *nine, *cat, PAD, PAD, PAD, 0, 8099]
    cropped = layout_tokens(boxes, CLASSES, crop=(0.2, 0.0, 0.8, 1.0), most=4)
    crop = [18, 71 + 90 * 89]
    assert cropped.tolist() == [*dog, *nine, *[PAD] * 6, *crop]
    # The first two stay, whatever their order becomes afterwards.
    order = np.random.default_rng(1)
    found = layout_tokens(boxes, CLASSES, order=order, most=2).tolist()
    assert found in ([*dog, *nine, 0, 8099], [*nine, *dog, 0, 8099])
    assert layout_tokens([], CLASSES).tolist() == [PAD] * 90 + [0, 8099]
    assert corner_token(1, 0) == 89 and corner_token(0, 1) == 8010


def test_ldm_tokens_of_a_layout_have_one_order():
    ldm = dataclasses.replace(LAYOUT, config=dataclasses.replace(SIZES, tokens="ldm"))
    tokens = ldm.collate([TWO, "; ".join(reversed(TWO.split("; "))), ""])["layout_tokens"]
    assert tokens[0].tolist() == tokens[1].tolist() and tokens.shape == (3, 11)
    assert tokens[2].tolist() == [PAD] * 9 + [0, 8099]
    given = ldm.encode(random(jax.eval_shape(ldm.init, jax.random.key(0))), {}, ldm.collate([TWO]))
    assert given.tokens.shape == (1, 11, 16) and given.mask.all()


def ldm_in_torch(torch, tensors, tokens, layers, heads):
    """The x-transformers encoder that LDM has, written out: pre-LayerNorm, exact GELU, no mask."""
    functional = torch.nn.functional
    weights = {name.removeprefix(PREFIX): torch.tensor(value) for name, value in tensors.items()}

    def norm(x, name):
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"]
        )

    x = weights["token_emb.weight"][torch.tensor(tokens)]
    x = x + weights["pos_emb.emb.weight"][: x.shape[1]]
    for i in range(layers):
        attention, mlp = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        h = norm(x, f"{attention}.0")
        q, k, v = (
            (h @ weights[f"{attention}.1.to_{n}.weight"].T)
            .unflatten(-1, (heads, -1))
            .transpose(1, 2)
            for n in "qkv"
        )
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = f"{attention}.1.to_out"
        x = x + functional.linear(h, weights[f"{out}.weight"], weights[f"{out}.bias"])
        h = norm(x, f"{mlp}.0")
        first, second = f"{mlp}.1.net.0.0", f"{mlp}.1.net.2"
        h = functional.linear(h, weights[f"{first}.weight"], weights[f"{first}.bias"])
        h = functional.gelu(h)
        x = x + functional.linear(h, weights[f"{second}.weight"], weights[f"{second}.bias"])
    return norm(x, "norm").numpy()


def test_ldms_transformer_against_torch_by_its_published_names(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle is written in torch")
    config = LayoutTransformerConfig(50, 11, 24, 2, 3)
    abstract = jax.eval_shape(
        LayoutTransformer(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    tensors = layout_transformer_tensors(config, random(abstract["params"]))
    assert f"{PREFIX}attn_layers.layers.3.1.net.0.0.weight" in tensors
    assert tensors[f"{PREFIX}attn_layers.layers.0.1.to_q.weight"].shape == (24, 24)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 11))
    save_file(tensors | {"model.out.2.bias": np.zeros(3, np.float32)}, tmp_path / "ldm.safetensors")
    opened = open_file(tmp_path / "ldm.safetensors")
    params = layout_transformer_params(config, opened, "'x'")
    ours = np.asarray(LayoutTransformer(config).apply({"params": params}, tokens))
    theirs = ldm_in_torch(torch, tensors, tokens, 2, 3)
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    less = {name: opened[name] for name in opened if name != f"{PREFIX}norm.bias"}
    with pytest.raises(ValueError, match="norm.bias"):
        layout_transformer_params(config, less, "'x'")


def test_ldms_transformer_is_as_large_as_published():
    """54,656,000 parameters: shared/reference, section C."""
    module = LayoutTransformer(LayoutConfig(layers=16, tokens="ldm").transformer)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes))) == 54_656_000

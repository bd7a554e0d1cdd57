"""Latent U-Net: every layer of diffusers' UNet2DConditionModel on random weights, and its traps."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.encoders import latent_weights
from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.networks import latent_blocks
from contextdiff_jax.networks.latent_config import (
    LatentUNetConfig,
    ldm_imagenet,
    ldm_layout,
    stable_diffusion_1,
    stable_diffusion_2,
)
from contextdiff_jax.networks.latent_unet import LatentUNet, attention_sites

RNG = np.random.default_rng(3)
X = RNG.normal(size=(3, 8, 12, 4)).astype(np.float32)  # not square
T = np.array([1.0, 2.0, 1000.0], np.float32)  # published weights count from 0
CONTEXT = RNG.normal(size=(3, 7, 24)).astype(np.float32)
ALL = np.ones((3, 7), bool)


class Case:
    """A random U-Net of diffusers, its folder, and ours compiled."""

    def __init__(self, latent_oracles, sizes, folder):
        from diffusers import UNet2DConditionModel

        self.latent_oracles, self.folder = latent_oracles, folder
        self.torch = latent_oracles.randomized(UNet2DConditionModel(**sizes))
        self.torch.save_pretrained(folder)
        self.config, self.params = latent_weights.load_unet(folder)
        self.module = LatentUNet(self.config)
        self.run = latent_oracles.captured(self.module)
        abstract = latent_weights.abstract_unet(self.config)
        self.table = unet_table(abstract, len(self.config.channels))

    def theirs(self):
        torch = self.latent_oracles.torch
        inputs = (self.latent_oracles.image(X), torch.from_numpy(T - 1), torch.from_numpy(CONTEXT))
        result, layers = self.latent_oracles.layer_outputs(
            self.torch, lambda: self.torch(*inputs).sample
        )
        return self.latent_oracles.array(result), layers

    def ours(self, t=T, context=CONTEXT, mask=ALL, params=None):
        return self.run(self.params if params is None else params, X, t, context, mask)


@pytest.fixture(scope="module")
def first(latent_oracles, tmp_path_factory):
    """As Stable Diffusion 1.x: one number of heads, convolutions as projections."""
    return Case(latent_oracles, latent_oracles.UNET_1, tmp_path_factory.mktemp("unet_1"))


@pytest.fixture(scope="module")
def second(latent_oracles, tmp_path_factory):
    """As 2.x, with LDM's levels of attention and depth: see UNET_2."""
    return Case(latent_oracles, latent_oracles.UNET_2, tmp_path_factory.mktemp("unet_2"))


@pytest.mark.parametrize("name", ["first", "second"])
def test_every_layer_is_diffusers(name, request, latent_oracles):
    case = request.getfixturevalue(name)
    (got, ours), (expected, theirs) = case.ours(), case.theirs()
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
    latent_oracles.assert_same_layers(ours, theirs, case.table, least=len(theirs))


def test_norms_add_what_diffusers_adds_where_activations_are_small(first, latent_oracles, tmp_path):
    """Everything that a norm reads is of 1e-3, whose square is the smaller epsilon."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_pretrained(first.folder)
    with latent_oracles.torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and not name.startswith(("time_embedding", "conv_out")):
                small = 1e-3 if parameter.ndim > 1 else 0.0
                inner = any(part in name for part in ("to_q", "to_k", "ff.net.0"))
                parameter.mul_(1.0 if inner else small)
    model.save_pretrained(tmp_path)
    small = object.__new__(Case)
    small.__dict__ |= first.__dict__ | {"torch": model.eval()}
    small.params = latent_weights.load_unet(tmp_path)[1]
    ours, theirs = small.ours()[1], small.theirs()[1]
    read = theirs["down_blocks.0.attentions.0.proj_in"]
    assert 1e-4 < np.abs(read).mean() < 1e-2
    latent_oracles.assert_same_layers(ours, theirs, small.table, least=len(theirs), tolerance=1e-3)


@pytest.mark.slow
def test_every_tensor_changes_the_output(first):
    base = np.asarray(first.ours()[0])
    leaves, structure = jax.tree.flatten(first.params)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(first.params)]
    for index, path in enumerate(paths):
        changed = [*leaves]
        changed[index] = leaves[index] + RNG.normal(size=leaves[index].shape).astype(np.float32)
        other = first.ours(params=jax.tree.unflatten(structure, changed))[0]
        assert np.abs(np.asarray(other) - base).max() > 1e-3, path


def test_times_next_to_each_other_differ_in_bfloat16(first):
    apply = jax.jit(LatentUNet(first.config, dtype=jnp.bfloat16).apply)
    near, other = (
        np.asarray(apply({"params": first.params}, X, np.full(3, t, np.float32), CONTEXT))
        for t in (999.0, 1000.0)
    )
    assert near.dtype == np.float32
    assert np.abs(near - other).max() > 1e-3
    exact = np.asarray(first.ours(t=np.full(3, 1000.0, np.float32))[0])
    assert np.abs(other - exact).mean() < 0.05 * np.abs(exact).mean()


def test_the_time_is_embedded_cosines_first(first):
    _, layers = first.ours()
    hidden = first.params["time"]["hidden"]
    # At time 0 cosines are 1 and sines 0.
    expected = hidden["kernel"][: first.config.channels[0] // 2].sum(0) + hidden["bias"]
    np.testing.assert_allclose(layers["time/hidden"][0], expected, rtol=1e-4, atol=1e-5)


def test_projections_by_convolutions_and_linear_layers_are_the_same(first, tmp_path):
    from safetensors.numpy import load_file, save_file

    config = json.loads((first.folder / "config.json").read_text())
    config["use_linear_projection"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = f"{latent_weights.STEM}.safetensors"
    tensors = load_file(first.folder / name)
    for key in tensors:
        if key.endswith(("proj_in.weight", "proj_out.weight")):
            tensors[key] = tensors[key][:, :, 0, 0]
    save_file(tensors, tmp_path / name)
    config, params = latent_weights.load_unet(tmp_path)
    got = jax.jit(LatentUNet(config).apply)({"params": params}, X, T, CONTEXT)
    np.testing.assert_allclose(got, first.ours()[0], rtol=1e-4, atol=1e-4)


def test_a_masked_token_is_not_attended(first):
    changed = CONTEXT.copy()
    changed[:, 5:] += 1.0
    ours = [first.ours(context=c, mask=np.arange(7) < [[5]] * 3)[0] for c in (CONTEXT, changed)]
    np.testing.assert_array_equal(*ours)
    assert np.abs(first.ours(context=changed)[0] - first.ours()[0]).max() > 1e-3


def test_sites_keep_their_weights_where_asked(first):
    sites = attention_sites(first.config)
    cross = next(s for s in sites if s.name == "up_1/block_2/attn/block_0/cross")
    own = next(s for s in sites if s.name == "middle_attn/block_0/self")
    module = LatentUNet(first.config, kept=(cross.name, own.name))
    got, kept = jax.jit(lambda *inputs: module.apply(*inputs, mutable=[latent_blocks.ATTENTION]))(
        {"params": first.params}, X, T, CONTEXT
    )
    np.testing.assert_allclose(got, first.ours()[0], rtol=1e-4, atol=1e-4)
    paths = jax.tree.leaves_with_path(kept[latent_blocks.ATTENTION])
    found = {"/".join(key.key for key in path[:-1]): weights for path, weights in paths}
    assert set(found) == {cross.name, own.name}
    assert found[cross.name].shape == (3, cross.heads, 4 * 6, 7) and cross.reduction == 2
    assert found[own.name].shape == (3, own.heads, 2 * 3, 2 * 3) and own.kind == "self"
    np.testing.assert_allclose(found[cross.name].sum(-1), 1.0, rtol=1e-5)


def test_sites_that_are_not_there_are_refused(first):
    module = LatentUNet(first.config, kept=("middle_attn/block_0/crosss",))
    with pytest.raises(ValueError, match="kept has 'middle_attn/block_0/crosss', which is no"):
        module.apply({"params": first.params}, X, T, CONTEXT)


def test_every_site_is_in_the_tree(second):
    for site in attention_sites(second.config):
        module = second.params
        for part in site.name.split("/"):
            module = module[part]
        context = {"self": site.channels, "cross": second.config.context_dim}[site.kind]
        assert module["query"]["kernel"].shape == (site.channels, site.channels)
        assert module["key"]["kernel"].shape == (context, site.channels)
    with pytest.raises(ValueError, match="scan_blocks = True: must be False"):
        attention_sites(dataclasses.replace(second.config, scan_blocks=True))


def test_scanned_and_rematerialized_blocks_compute_the_same(first):
    """The scanned tree is read from the same folder: stacks begin at any number."""
    config = dataclasses.replace(first.config, scan_blocks=True, remat="blocks")
    folder = first.folder
    tensors = latent_weights.open_folder(folder, latent_weights.STEM)
    params = latent_weights.unet_params(config, tensors, "here")
    assert {"block_0", "blocks_1_2"} <= set(params["up_0"]) | set(params["up_2"])
    got = jax.jit(LatentUNet(config).apply)({"params": params}, X, T, CONTEXT)
    np.testing.assert_allclose(got, first.ours()[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "heads", "taken"), [("cudnn", 1, "xla"), ("cudnn", 2, "cudnn"), ("flash", 1, "flash")]
)
def test_heads_that_cudnn_does_not_have_are_computed_plainly(asked, heads, taken, monkeypatch):
    implementations = []

    def attend(query, key, value, mask, implementation):
        implementations.append(implementation)
        return value

    monkeypatch.setattr(latent_blocks, "attend", attend)
    module = latent_blocks.SiteAttention(heads, implementation=asked)
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5, 256)))
    assert implementations == [taken]


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (stable_diffusion_1, 859_520_964),
        (stable_diffusion_2, 865_910_724),
        (ldm_imagenet, 400_920_579),
        (ldm_layout, 246_277_379),
    ],
)
def test_published_sizes_have_as_many_parameters_as_published(preset, count):
    config = preset()
    config.validate()
    abstract = latent_weights.abstract_unet(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"heads": (8, 8)}, "heads = (8, 8): must have 4 entries"),
        ({"heads": (3, 8, 8, 8)}, "heads = 3: must divide the 320"),
        ({"groups": 48}, "groups = 48: must divide"),
        ({"attention_levels": (4,)}, "attention_levels"),
        ({"channels": ()}, "channels = ()"),
        ({"depth": 0}, "depth = 0"),
    ],
)
def test_what_cannot_work_is_named(changes, cause):
    with pytest.raises(ValueError) as error:
        LatentUNetConfig(**changes).validate("unet")
    assert str(error.value).startswith("unet.") and cause in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "cause"),
    [
        ((X[:, :6], T, CONTEXT), "height of x = 6: must be a multiple of 4"),
        ((X[..., :3], T, CONTEXT), "x has shape (3, 8, 12, 3); its last axis must be 4"),
        ((X, T, CONTEXT[..., :9]), "context has shape (3, 7, 9); its last axis must be 24"),
    ],
)
def test_inputs_that_do_not_fit_are_named(first, inputs, cause):
    with pytest.raises(ValueError) as error:
        first.module.apply({"params": first.params}, *inputs)
    assert cause in str(error.value)

"""First stages: every layer of diffusers' torch models on random weights, and their traps."""

import jax
import numpy as np
import pytest

from contextdiff_jax.encoders import latent_weights
from contextdiff_jax.encoders.diffusers_names import tiny_table, unet_table
from contextdiff_jax.networks.latent_config import (
    AutoencoderConfig,
    TinyAutoencoderConfig,
    kl_f8,
    taef2,
    taesd,
    vq_f4,
    vq_f8,
)

RNG = np.random.default_rng(4)
IMAGES = RNG.uniform(-1, 1, size=(2, 16, 24, 3)).astype(np.float32)  # not square


class Case:
    """A random first stage of diffusers, its folder, and ours compiled both ways."""

    def __init__(self, latent_oracles, kind, sizes, folder):
        self.latent_oracles, self.folder = latent_oracles, folder
        self.torch = latent_oracles.randomized(kind(**sizes))
        self.torch.save_pretrained(folder)
        self.config, self.params = latent_weights.load_first_stage(folder)
        self.module = latent_weights.first_stage(self.config)
        self.encode = latent_oracles.captured(self.module, "encode")
        self.decode = latent_oracles.captured(self.module, "decode")
        abstract = latent_weights.abstract_first_stage(self.config)
        tiny = isinstance(self.config, TinyAutoencoderConfig)
        self.table = tiny_table(abstract) if tiny else unet_table(abstract, 3)
        height, width = (side // self.config.reduction for side in IMAGES.shape[1:3])
        shape = (2, height, width, self.config.latent_channels)
        self.latents = RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def kl(latent_oracles, tmp_path_factory):
    from diffusers import AutoencoderKL

    return Case(latent_oracles, AutoencoderKL, latent_oracles.KL, tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def vq(latent_oracles, tmp_path_factory):
    from diffusers import VQModel

    return Case(latent_oracles, VQModel, latent_oracles.VQ, tmp_path_factory.mktemp("vq"))


@pytest.fixture(scope="module")
def tiny(latent_oracles, tmp_path_factory):
    from diffusers import AutoencoderTiny

    sizes = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    return Case(latent_oracles, AutoencoderTiny, sizes, tmp_path_factory.mktemp("tiny"))


def expected_encoding(case):
    encode = case.torch.encode
    result, layers = case.latent_oracles.layer_outputs(
        case.torch, lambda: encode(case.latent_oracles.image(IMAGES))
    )
    return result, layers


@pytest.mark.parametrize("name", ["kl", "vq", "tiny"])
def test_every_layer_is_diffusers(name, request):
    case = request.getfixturevalue(name)
    latent_oracles = case.latent_oracles
    (mean, log_variance), ours = case.encode(case.params, IMAGES)
    expected, theirs = expected_encoding(case)
    if name == "kl":
        gaussian = expected.latent_dist
        np.testing.assert_allclose(mean, latent_oracles.array(gaussian.mean), atol=2e-4)
        np.testing.assert_allclose(log_variance, latent_oracles.array(gaussian.logvar), atol=2e-4)
    else:
        assert log_variance is None
        np.testing.assert_allclose(mean, latent_oracles.array(expected.latents), atol=2e-4)
    latent_oracles.assert_same_layers(ours, theirs, case.table, least=len(theirs))

    got, ours = case.decode(case.params, case.latents)
    expected, theirs = latent_oracles.layer_outputs(
        case.torch, lambda: case.torch.decode(latent_oracles.image(case.latents)).sample
    )
    np.testing.assert_allclose(got, latent_oracles.array(expected), atol=5e-4)
    # diffusers' codebook is an embedding that its module reads by indices, not by a call.
    latent_oracles.assert_same_layers(ours, theirs, case.table, least=len(theirs) - (name == "vq"))


@pytest.mark.parametrize("name", ["kl", "vq", "tiny"])
def test_every_tensor_changes_a_round_trip(name, request):
    case = request.getfixturevalue(name)
    run = jax.jit(
        lambda params: (case.encode(params, IMAGES)[0], case.decode(params, case.latents)[0])
    )
    base = jax.tree.leaves(run(case.params))
    leaves, structure = jax.tree.flatten(case.params)
    for index, (path, leaf) in enumerate(jax.tree.leaves_with_path(case.params)):
        where = jax.tree_util.keystr(path)
        if "['key']['bias']" in where:
            continue  # it adds the same to all logits of a query
        changed = [*leaves]
        changed[index] = leaf + RNG.normal(size=leaf.shape).astype(np.float32)
        other = jax.tree.leaves(run(jax.tree.unflatten(structure, changed)))
        differences = [np.abs(a - b).max() for a, b in zip(base, other, strict=True)]
        assert max(differences) > 1e-3, where


def test_norms_add_what_diffusers_adds_where_activations_are_small(kl, latent_oracles, tmp_path):
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(kl.folder)
    with latent_oracles.torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and not name.startswith("encoder.conv_out"):
                parameter.mul_(1e-3 if parameter.ndim > 1 else 0.0)
    model.save_pretrained(tmp_path)
    params = latent_weights.load_first_stage(tmp_path)[1]
    _, ours = kl.encode(params, IMAGES)
    _, theirs = latent_oracles.layer_outputs(
        model.eval(), lambda: model.encode(latent_oracles.image(IMAGES))
    )
    assert 1e-4 < np.abs(theirs["encoder.conv_in"]).mean() < 1e-2
    latent_oracles.assert_same_layers(ours, theirs, kl.table, least=len(theirs), tolerance=1e-3)


def test_the_variance_is_limited(kl):
    params = jax.tree.map(np.array, kl.params)
    params["quant_conv"]["bias"] += 1000.0
    log_variance = kl.encode(params, IMAGES)[0][1]
    assert (np.asarray(log_variance) == 20.0).all()


def test_codes_are_the_nearest_and_decoding_takes_them(vq):
    codes = vq.params["codebook"]
    distances = ((vq.latents[..., None, :] - codes) ** 2).sum(-1)
    indices = vq.module.apply({"params": vq.params}, vq.latents, method="indices")
    np.testing.assert_array_equal(indices, distances.argmin(-1))
    decoded = np.asarray(vq.decode(vq.params, vq.latents)[0])
    np.testing.assert_allclose(vq.decode(vq.params, codes[indices])[0], decoded, atol=1e-5)
    nearer = vq.latents + 1e-3 * (codes[indices] - vq.latents)
    np.testing.assert_allclose(vq.decode(vq.params, nearer)[0], decoded, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        (kl_f8, {"encoder": 34_163_592, "decoder": 49_490_179, "all": 83_653_863}),
        (vq_f4, {"all": 55_322_782}),
        (vq_f8, {"all": 67_717_295}),
        (taesd, {"encoder": 1_222_532, "decoder": 1_222_531}),
        (taef2, {"encoder": 1_338_528, "decoder": 1_338_499}),
    ],
)
def test_published_sizes_have_as_many_parameters_as_published(preset, count):
    config = preset()
    config.validate()
    abstract = latent_weights.abstract_first_stage(config)
    for part, expected in count.items():
        tree = abstract if part == "all" else abstract[part]
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == expected


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (AutoencoderConfig(kind="vq"), "s.codes = 0: must be positive with kind = 'vq'"),
        (AutoencoderConfig(codes=8), "s.codes = 8: must be 0 with kind = 'kl'"),
        (AutoencoderConfig(groups=48), "s.groups = 48: must divide the 128"),
        (
            AutoencoderConfig(attention_levels=(4,)),
            "s.attention_levels = (4,): must be levels from 0 to",
        ),
        (AutoencoderConfig(scaling_factor=0.0), "s.scaling_factor = 0.0: must be positive"),
        (TinyAutoencoderConfig(decoder_blocks=(3,)), "s.decoder_blocks = (3,): must have 4"),
        (TinyAutoencoderConfig(width=0), "s.width = 0: must be at least 1"),
    ],
)
def test_what_cannot_work_is_named(config, cause):
    with pytest.raises(ValueError) as error:
        config.validate("s")
    assert cause in str(error.value)

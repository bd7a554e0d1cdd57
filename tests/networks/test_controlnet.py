"""Control branches: every layer of diffusers' ControlNetModel, and nothing at all at first."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax.encoders import controlnet_weights, latent_weights
from contextdiff_jax.encoders.controlnet_weights import ControlNetConfig, abstract_controlnet
from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.controlnet import ControlledUNet
from contextdiff_jax.networks.latent_config import stable_diffusion_1
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.training.parameter_names import by_name, nested

RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 8, 12, 4)).astype(np.float32)  # not square
T = np.array([1.0, 1000.0], np.float32)  # published weights count from 0
CONTEXT = RNG.normal(size=(2, 7, 24)).astype(np.float32)
HINT = RNG.uniform(size=(2, 64, 96, 3)).astype(np.float32)
HINT_CHANNELS = (4, 6, 8, 10)  # four, as published
NONE = np.zeros(2, bool)


@pytest.fixture(scope="module")
def oracle(latent_oracles):
    pytest.importorskip("transformers", reason="the oracle is diffusers' torch model")
    from tests.encoders import controlnet_folder

    return controlnet_folder


@pytest.fixture(scope="module")
def branch(oracle):
    return oracle.model(layers_per_block=2, hint=HINT_CHANNELS)


@pytest.fixture(scope="module")
def folder(branch, tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnet")
    branch.save_pretrained(path)
    return path


def test_every_layer_and_residual_is_diffusers(branch, folder, latent_oracles):
    torch, image = latent_oracles.torch, latent_oracles.image
    inputs = (image(X), torch.from_numpy(T - 1), torch.from_numpy(CONTEXT), image(HINT))
    result, theirs = latent_oracles.layer_outputs(branch, lambda: branch(*inputs))
    config = controlnet_weights.read_controlnet_config(folder)
    params = controlnet_weights.load_controlnet(folder, config)
    got, ours = latent_oracles.captured(config.module())(params, X, T, CONTEXT, HINT)
    table = unet_table(abstract_controlnet(config), len(config.unet.channels))
    latent_oracles.assert_same_layers(ours, theirs, table, least=len(theirs))
    expected = [*result.down_block_res_samples, result.mid_block_res_sample]
    assert len(got) == len(expected) == 3 * 3 + 1
    for mine, wanted in zip(got, map(latent_oracles.array, expected), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-4 * np.abs(wanted).max())


def test_its_own_files_are_read_too(branch, folder, oracle, latent_oracles, tmp_path):
    config = controlnet_weights.read_controlnet_config(folder)
    expected = controlnet_weights.load_controlnet(folder, config)
    path = oracle.write_single_file(tmp_path / "control.safetensors", branch)
    read = controlnet_weights.read_controlnet(path, config.unet)
    assert read == config
    latent_oracles.assert_same(controlnet_weights.load_controlnet(path, read), expected)


def test_prompt_diffusion_is_its_query_s_convolutions(branch, folder, tmp_path, caplog):
    """Under its own names and diffusers', beside a stack of six channels that is left out."""
    from safetensors.numpy import load_file, save_file

    expected = controlnet_weights.load_controlnet(
        folder, controlnet_weights.read_controlnet_config(folder)
    )
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    hint = "controlnet_cond_embedding."
    own = {name: value for name, value in tensors.items() if name.startswith(hint)}
    pair = {name: RNG.normal(size=value.shape).astype(np.float32) for name, value in own.items()}
    pair[f"{hint}conv_in.weight"] = RNG.normal(size=(4, 6, 3, 3)).astype(np.float32)
    query = {name.replace("_cond_", "_query_cond_"): value for name, value in own.items()}
    save_file({**tensors, **pair, **query}, tmp_path / "diffusion_pytorch_model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    values |= {"_class_name": "PromptDiffusionControlNetModel", "conditioning_channels": 6}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = controlnet_weights.read_controlnet_config(tmp_path)
    found = by_name(controlnet_weights.load_controlnet(tmp_path, config))
    assert found.keys() == by_name(expected).keys() and "are left out" in caplog.text
    for name, leaf in by_name(expected).items():
        np.testing.assert_array_equal(leaf, found[name], err_msg=name)


def test_prompt_diffusion_s_own_file_is_read_too(branch, folder, oracle, tmp_path):
    from safetensors.numpy import load_file, save_file

    config = controlnet_weights.read_controlnet_config(folder)
    expected = by_name(controlnet_weights.load_controlnet(folder, config))
    path = oracle.write_single_file(tmp_path / "control.safetensors", branch)
    tensors = load_file(path)
    hint = "control_model.input_hint_block."
    query = {n.replace("_hint_", "_cond_"): v for n, v in tensors.items() if n.startswith(hint)}
    pair = {name: value + 1 for name, value in tensors.items() if name.startswith(hint)}
    pair[f"{hint}0.weight"] = np.zeros((4, 6, 3, 3), np.float32)
    save_file({**tensors, **pair, **query}, path)
    read = controlnet_weights.read_controlnet(path, config.unet)
    found = by_name(controlnet_weights.load_controlnet(path, read))
    assert read == config and found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaf, found[name], err_msg=name)


def test_the_published_size():
    shapes = abstract_controlnet(ControlNetConfig(stable_diffusion_1()))
    sizes = [leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes))]
    assert sum(sizes) == 361_279_120  # shared/reference, section E


@pytest.mark.slow
def test_a_new_branch_adds_exactly_nothing_and_begins_as_a_copy(folder, latent_oracles):
    """Zero convolutions as they begin, everything else the U-Net's own: not a bit changes."""
    sizes = controlnet_weights.read_controlnet_config(folder)
    unet = LatentUNet(sizes.unet)
    shapes = nn.unbox(latent_weights.abstract_unet(sizes.unet))
    params = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32) / 8, shapes)
    module = sizes.module()
    init = jax.jit(module.init)
    fresh = nn.unbox(init(jax.random.key(0), X, T, CONTEXT, HINT)["params"])
    names = by_name(fresh), by_name(params)
    branch = nested(names[0] | {name: names[1][name] for name in names[0] if name in names[1]})
    assert (
        branch["down_1"]["block_0"]["res"]["conv_1"]["kernel"]
        is (params["down_1"]["block_0"]["res"]["conv_1"]["kernel"])
    )
    assert set(branch) == set(fresh) and "up_0" not in branch

    @jax.jit
    def draw(params, residuals):
        return unet.apply({"params": params}, X, T, CONTEXT, residuals=residuals)

    residuals = jax.jit(module.apply)({"params": branch}, X, T, CONTEXT, HINT)
    assert all(np.all(np.asarray(each) == 0) for each in residuals)
    plain = np.asarray(draw(params, None))
    np.testing.assert_array_equal(draw(params, residuals), plain)
    one = [np.asarray(each) + (number == 4) for number, each in enumerate(residuals)]
    assert np.abs(draw(params, one) - plain).max() > 1e-3


CONFIG = UNetConfig(
    width=8,
    multipliers=(1, 2),
    num_blocks=1,
    attention_levels=(1,),
    head_dim=8,
    groups=4,
    text_dim=8,
    text_width=None,
    scan_blocks=False,
)


@pytest.mark.slow
def test_the_pixel_u_net_has_a_branch_by_the_same_rules():
    """Nothing at first; then the hint matters, but not where there is none."""
    x, hint = (RNG.normal(size=(2, 8, 8, 3)).astype(np.float32) for _ in range(2))
    text = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    controlled, plain = ControlledUNet(CONFIG), UNet(CONFIG)
    present = np.array([True, False])
    init = jax.jit(controlled.init)
    params = nn.unbox(init(jax.random.key(0), x, T, hint, present, text)["params"])
    params["head"]["conv"]["kernel"] = RNG.normal(size=(3, 3, 8, 3)).astype(np.float32)
    own = {name: each for name, each in params.items() if name != "control"}
    expected = np.asarray(jax.jit(plain.apply)({"params": own}, x, T, text))
    run = jax.jit(controlled.apply)
    fresh, off = (run({"params": params}, x, T, hint, p, text) for p in (present, NONE))
    np.testing.assert_array_equal(fresh, off)
    # Another compiled program: up to its rounding.
    np.testing.assert_allclose(fresh, expected, atol=1e-5 * np.abs(expected).max())
    names = [name for name in params["control"] if name.startswith("zero")]
    for name in names:
        params["control"][name]["kernel"] += 1.0
    params["control"]["hint"]["conv_out"]["kernel"] += 0.1
    moved, other = (
        np.asarray(run({"params": params}, x, T, each, present, text)) for each in (hint, -hint)
    )
    assert np.abs(moved[0] - other[0]).max() > 1e-4
    np.testing.assert_array_equal(moved[1], off[1])


def test_a_hint_of_another_size_is_refused(folder):
    sizes = controlnet_weights.read_controlnet_config(folder)
    with pytest.raises(ValueError, match=r"hint has shape \(2, 32, 96, 3\); it becomes \(4, 12\)"):
        jax.eval_shape(
            sizes.module().init, jax.random.key(0), X, T, CONTEXT, jnp.zeros((2, 32, 96, 3))
        )


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "must be ControlNetModel"),
        ({"conditioning_channels": 6}, "conditioning_channels = 6: must be 3"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "= 'bgr': must be 'rgb'"),
        ({"global_pool_conditions": True}, "global_pool_conditions = True: must be False"),
        ({"conditioning_embedding_out_channels": None}, "must be a list of 1 to 8 integers"),
        ({"conditioning_embedding_out_channels": [4, "x"]}, "out_channels = 'x': must be int"),
        ({"conditioning_embedding_out_channels": [4, 0]}, "must be in 1..16384"),
    ],
)
def test_what_a_branch_cannot_be_is_named(values, cause, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(ValueError) as error:
        controlnet_weights.read_controlnet_config(tmp_path)
    assert cause in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_branch_is_named(tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv.weight": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no control branch: it has no input_hint_block.0"):
        controlnet_weights.read_controlnet(tmp_path / "other.safetensors", stable_diffusion_1())
    with pytest.raises(FileNotFoundError, match="none.safetensors' do not exist"):
        controlnet_weights.read_controlnet(tmp_path / "none.safetensors", stable_diffusion_1())

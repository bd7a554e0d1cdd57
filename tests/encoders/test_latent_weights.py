"""Published weights of latent diffusion: every form that they come in, and back to diffusers."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.diffusers_configs import read_unet_config
from contextdiff_jax.encoders.latent_weights import (
    STEM,
    first_stage_identity,
    load_first_stage,
    load_unet,
    save_first_stage_folder,
    save_unet_folder,
    unet_identity,
)
from contextdiff_jax.networks.latent_config import stable_diffusion_1, stable_diffusion_2

WEIGHTS = f"{STEM}.safetensors"


def loader(name):
    return load_unet if name in ("unet", "ldm") else load_first_stage


def copied(folder, target, name=WEIGHTS, change=lambda tensors: tensors, config=None):
    """Copies a folder with its config and tensors changed, and the file named `name`."""
    values = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **(config or {})}))
    save_file(change(load_file(folder / WEIGHTS)), target / name)
    return target


@pytest.mark.parametrize("name", ["unet", "kl", "vq"])
def test_diffusers_loads_what_is_written(name, latent_models, latent_folders, tmp_path):
    config, params = loader(name)(latent_folders[name])
    save = save_unet_folder if name == "unet" else save_first_stage_folder
    save(tmp_path, config, params)
    back = type(latent_models[name]).from_pretrained(tmp_path, low_cpu_mem_usage=False)
    state = back.state_dict()
    for key, tensor in latent_models[name].state_dict().items():
        np.testing.assert_array_equal(state[key], tensor, err_msg=key)
    assert loader(name)(tmp_path)[0] == config
    # diffusers reads of our config.json what it wrote itself; one number of heads is a list now.
    for key, value in latent_models[name].config.items():
        if not key.startswith("_"):
            expected = [value] * 4 if key == "attention_head_dim" else value
            got = back.config[key]
            assert got == expected or list(got) == list(expected), key


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_an_fp16_variant_is_read(kind, latent_folders, tmp_path):
    def halved(tensors):
        return {name: array.astype(kind) for name, array in tensors.items()}

    copied(latent_folders["kl"], tmp_path, f"{STEM}.fp16.safetensors", halved)
    _, params = load_first_stage(tmp_path)
    expected = traverse_util.flatten_dict(load_first_stage(latent_folders["kl"])[1])
    for path, array in traverse_util.flatten_dict(params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[path].astype(kind).astype(np.float32))


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read(variant, latent_folders, tmp_path, latent_oracles):
    tensors = load_file(latent_folders["unet"] / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / f"{WEIGHTS}.index{variant}.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((latent_folders["unet"] / "config.json").read_text())
    latent_oracles.assert_same(load_unet(tmp_path)[1], load_unet(latent_folders["unet"])[1])


@pytest.mark.parametrize("axes", [2, 4])
def test_old_names_of_attention_are_read(axes, latent_folders, tmp_path, latent_oracles):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(tensors):
        found = {}
        for name, array in tensors.items():
            for today, before in old.items():
                if f"attentions.0.{today}." in name:
                    name = name.replace(today, before)
                    array = array[:, :, None, None] if axes == array.ndim + 2 == 4 else array
            found[name] = array
        assert any(name.endswith("attentions.0.proj_attn.weight") for name in found)
        return found

    copied(latent_folders["kl"], tmp_path, change=renamed)
    latent_oracles.assert_same(
        load_first_stage(tmp_path)[1], load_first_stage(latent_folders["kl"])[1]
    )


def test_keys_that_old_configs_omit_have_diffusers_defaults(
    latent_folders, tmp_path, latent_oracles
):
    values = json.loads((latent_folders["unet"] / "config.json").read_text())
    kept = {"_class_name", "block_out_channels", "cross_attention_dim", "norm_num_groups"}
    kept |= {"attention_head_dim"}
    copied(latent_folders["unet"], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({key: values[key] for key in kept}))
    config, params = load_unet(tmp_path)
    expected, expected_params = load_unet(latent_folders["unet"])
    assert config.heads == expected.heads == (2, 2, 2, 2)
    assert config.attention_levels == expected.attention_levels
    latent_oracles.assert_same(params, expected_params)


# As published, but for keys that say nothing of sizes.
PUBLISHED = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SECOND = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
            stable_diffusion_1(),
        ),
        ({**SECOND, "sample_size": 64}, stable_diffusion_2()),
        (
            {**SECOND, "sample_size": 96, "upcast_attention": True},
            dataclasses.replace(stable_diffusion_2(), sample_size=96, upcast_attention=True),
        ),
    ],
)
def test_published_configs_are_the_presets(keys, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **keys}))
    assert read_unet_config(tmp_path) == expected


def test_identities_are_of_names_and_values(latent_folders, tmp_path):
    base = unet_identity(latent_folders["unet"]), first_stage_identity(latent_folders["kl"])
    copied(latent_folders["unet"], tmp_path, f"{STEM}.fp16.safetensors")
    assert (unet_identity(tmp_path), base[0] != base[1]) == (base[0], True)
    copied(latent_folders["unet"], tmp_path, change=put("conv_in.bias", np.ones(8, np.float32)))
    assert unet_identity(tmp_path) != base[0]


def test_a_scale_that_is_not_given_is_what_the_stage_was_published_with(latent_folders, tmp_path):
    for name, expected in (("kl", 0.18215), ("vq", 1.0)):
        values = json.loads((latent_folders[name] / "config.json").read_text())
        del values["scaling_factor"]
        (tmp_path / name).mkdir()
        copied(latent_folders[name], tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        assert load_first_stage(tmp_path / name)[0].scaling_factor == expected


# ---- what is refused


def without(name):
    return lambda tensors: {key: array for key, array in tensors.items() if key != name}


def put(name, array):
    return lambda tensors: {**tensors, name: array}


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("unet", without("conv_in.bias"), "1 missing: conv_in.bias"),
        ("kl", without("quant_conv.weight"), "1 missing: quant_conv.weight"),
        ("unet", put("label_emb.weight", np.ones(3)), "1 unexpected: label_emb.weight"),
        ("unet", put("conv_in.bias", np.ones(9, np.float32)), "conv_in.bias is (9,), must be (8,)"),
        ("vq", put("conv.bias", np.ones(9)), "1 unexpected: conv.bias"),
        ("unet", put("conv_in.bias", np.full(8, np.nan, np.float32)), "conv_in.bias of"),
        ("kl", put("decoder.conv_in.bias", np.ones(32, np.int8)), "is I8, must be one of F32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name, change, cause, latent_folders, tmp_path):
    copied(latent_folders[name], tmp_path, change=change)
    with pytest.raises(ValueError) as error:
        loader(name)(tmp_path)
    assert cause in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "config", "cause"),
    [
        ("unet", {"_class_name": "FluxTransformer2DModel"}, "must be UNet2DConditionModel"),
        ("kl", {"_class_name": "UNet2DConditionModel"}, "must be AutoencoderKL or VQModel or"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time': must"),
        ("unet", {"out_channels": 8}, "out_channels = 8: must be 4"),
        ("unet", {"in_channels": 9}, "out_channels = 4: must be 9"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos = False: must be True"),
        ("unet", {"norm_eps": 1e-6}, "norm_eps = 1e-06: must be 1e-05"),
        ("unet", {"block_out_channels": [8, 10**9, 16, 16]}, "channels = 1000000000: must be at"),
        ("unet", {"block_out_channels": 8}, "block_out_channels = 8: must be a list"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 3}, "must be 4 of CrossAttnDownBlock2D"),
        ("unet", {"up_block_types": ["UpBlock2D"] * 4}, "up_block_types"),
        ("unet", {"up_block_types": 3}, "up_block_types = 3: must"),
        ("unet", {"attention_head_dim": [1, 1]}, "heads = (1, 1): must have"),
        ("unet", {"attention_head_dim": 3}, "heads = 3: must divide"),
        ("unet", {"layers_per_block": [1, 2]}, "layers_per_block = [1, 2]: must be int"),
        ("kl", {"shift_factor": 0.1}, "shift_factor = 0.1: must be None"),
        ("kl", {"scaling_factor": "x"}, "scaling_factor = 'x': must be float"),
        ("kl", {"down_block_types": ["DownEncoderBlock2D", "Other"]}, "must be 3 of Down"),
        ("vq", {"vq_embed_dim": 5}, "vq_embed_dim = 5: must be 3"),
        ("vq", {"norm_type": "spatial"}, "norm_type = 'spatial': must be 'group'"),
    ],
)
def test_configs_of_other_networks_are_named(name, config, cause, latent_folders, tmp_path):
    copied(latent_folders[name], tmp_path, config=config)
    with pytest.raises(ValueError) as error:
        loader(name)(tmp_path)
    assert cause in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_pickles_are_refused_with_how_to_convert_them(latent_folders, tmp_path):
    (tmp_path / "config.json").write_text((latent_folders["unet"] / "config.json").read_text())
    (tmp_path / f"{STEM}.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=f"{STEM}.bin' is a pickle.*convert it .*python -c"):
        load_unet(tmp_path)


def test_what_is_missing_is_named(latent_folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_unet(tmp_path)
    with pytest.raises(FileNotFoundError, match="none of \\*encoder.safetensors"):
        load_first_stage(tmp_path)
    (tmp_path / "config.json").write_text((latent_folders["kl"] / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=f"neither {WEIGHTS} nor {WEIGHTS}.index"):
        load_first_stage(tmp_path)


def test_weights_that_do_not_fit_their_config_are_not_written(latent_folders, tmp_path):
    config, params = load_first_stage(latent_folders["vq"])
    del params["codebook"]
    with pytest.raises(ValueError, match="parameters do not fit the config: codebook"):
        save_first_stage_folder(tmp_path / "vae", config, params)
    assert not (tmp_path / "vae").exists()

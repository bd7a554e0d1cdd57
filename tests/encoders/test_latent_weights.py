"""Published weights of latent diffusion: every form that they come in, and back to diffusers."""

import dataclasses
import itertools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.clip import TextTower
from contextdiff_jax.encoders.config import STABLE_DIFFUSION_1_TEXT, STABLE_DIFFUSION_2_TEXT
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
from contextdiff_jax.encoders.single_file import (
    load_class_embedding,
    load_single_file_stage,
    load_single_file_text,
    load_single_file_unet,
)
from contextdiff_jax.encoders.weights import load_clip_text
from contextdiff_jax.networks.latent_config import stable_diffusion_1, stable_diffusion_2

WEIGHTS = f"{STEM}.safetensors"


@pytest.fixture(scope="module")
def models(latent_oracles):
    """{name: random model of diffusers}; the U-Net has 12 input blocks, as the published ones."""
    import diffusers

    deep = {
        **latent_oracles.UNET_1,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    return {
        "unet": latent_oracles.randomized(diffusers.UNet2DConditionModel(**deep)),
        "ldm": latent_oracles.randomized(diffusers.UNet2DConditionModel(**latent_oracles.UNET_LDM)),
        "kl": latent_oracles.randomized(diffusers.AutoencoderKL(**latent_oracles.KL)),
        "vq": latent_oracles.randomized(diffusers.VQModel(**latent_oracles.VQ)),
    }


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """{name: folder as diffusers writes it}."""
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found


def loader(name):
    return load_unet if name in ("unet", "ldm") else load_first_stage


def assert_same(params, expected):
    flat, wanted = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, expected))
    assert flat.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(flat[path], array, err_msg=path)


def copied(folder, target, name=WEIGHTS, change=lambda tensors: tensors, config=None):
    """Copies a folder with its config and tensors changed, and the file named `name`."""
    values = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **(config or {})}))
    save_file(change(load_file(folder / WEIGHTS)), target / name)
    return target


@pytest.mark.parametrize("name", ["unet", "kl", "vq"])
def test_diffusers_loads_what_is_written(name, models, folders, tmp_path):
    config, params = loader(name)(folders[name])
    save = save_unet_folder if name == "unet" else save_first_stage_folder
    save(tmp_path, config, params)
    back = type(models[name]).from_pretrained(tmp_path, low_cpu_mem_usage=False)
    state = back.state_dict()
    for key, tensor in models[name].state_dict().items():
        np.testing.assert_array_equal(state[key], tensor, err_msg=key)
    assert loader(name)(tmp_path)[0] == config
    # diffusers reads of our config.json what it wrote itself; one number of heads is a list now.
    for key, value in models[name].config.items():
        if not key.startswith("_"):
            expected = [value] * 4 if key == "attention_head_dim" else value
            got = back.config[key]
            assert got == expected or list(got) == list(expected), key


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_an_fp16_variant_is_read(kind, folders, tmp_path):
    def halved(tensors):
        return {name: array.astype(kind) for name, array in tensors.items()}

    copied(folders["kl"], tmp_path, f"{STEM}.fp16.safetensors", halved)
    _, params = load_first_stage(tmp_path)
    expected = traverse_util.flatten_dict(load_first_stage(folders["kl"])[1])
    for path, array in traverse_util.flatten_dict(params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[path].astype(kind).astype(np.float32))


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read(variant, folders, tmp_path):
    tensors = load_file(folders["unet"] / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / f"{WEIGHTS}.index{variant}.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((folders["unet"] / "config.json").read_text())
    assert_same(load_unet(tmp_path)[1], load_unet(folders["unet"])[1])


@pytest.mark.parametrize("axes", [2, 4])
def test_old_names_of_attention_are_read(axes, folders, tmp_path):
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

    copied(folders["kl"], tmp_path, change=renamed)
    assert_same(load_first_stage(tmp_path)[1], load_first_stage(folders["kl"])[1])


def test_keys_that_old_configs_omit_have_diffusers_defaults(folders, tmp_path):
    values = json.loads((folders["unet"] / "config.json").read_text())
    kept = {"_class_name", "block_out_channels", "cross_attention_dim", "norm_num_groups"}
    kept |= {"attention_head_dim"}
    copied(folders["unet"], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({key: values[key] for key in kept}))
    config, params = load_unet(tmp_path)
    expected, expected_params = load_unet(folders["unet"])
    assert config.heads == expected.heads == (2, 2, 2, 2)
    assert config.attention_levels == expected.attention_levels
    assert_same(params, expected_params)


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


def test_identities_are_of_names_and_values(folders, tmp_path):
    base = unet_identity(folders["unet"]), first_stage_identity(folders["kl"])
    copied(folders["unet"], tmp_path, f"{STEM}.fp16.safetensors")
    assert (unet_identity(tmp_path), base[0] != base[1]) == (base[0], True)
    copied(folders["unet"], tmp_path, change=put("conv_in.bias", np.ones(8, np.float32)))
    assert unet_identity(tmp_path) != base[0]


def test_a_scale_that_is_not_given_is_what_the_stage_was_published_with(folders, tmp_path):
    for name, expected in (("kl", 0.18215), ("vq", 1.0)):
        values = json.loads((folders[name] / "config.json").read_text())
        del values["scaling_factor"]
        (tmp_path / name).mkdir()
        copied(folders[name], tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(values))
        assert load_first_stage(tmp_path / name)[0].scaling_factor == expected


# ---- single files


@pytest.fixture(scope="module")
def single_file(models, tmp_path_factory):
    """A CompVis file of the U-Net and the first stage, with what else stands in such files."""
    from tests.encoders import compvis_layout

    unet = compvis_layout.unet_tensors(models["unet"])
    average = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): 2 * array
        for name, array in unet.items()
    }
    counters = {"model_ema.decay": np.ones(()), "model_ema.num_updates": np.ones((), np.int32)}
    schedule = {name: np.ones(1000) for name in ("betas", "alphas_cumprod", "logvar")}
    table = {"cond_stage_model.embedding.weight": np.arange(77.0, dtype=np.float32).reshape(11, 7)}
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    stage = compvis_layout.stage_tensors(models["kl"])
    save_file({**unet, **average, **counters, **schedule, **table, **stage}, path)
    return path


def test_a_single_file_holds_the_same_unet(single_file, folders):
    config, expected = load_unet(folders["unet"])
    assert_same(load_single_file_unet(single_file, config)[1], expected)
    averaged = load_single_file_unet(single_file, config, average=True)[1]
    doubled = traverse_util.flatten_dict(expected)
    doubled = traverse_util.unflatten_dict({path: 2 * array for path, array in doubled.items()})
    assert_same(averaged, doubled)


def test_a_single_file_of_ldm_holds_the_same_unet(models, folders, tmp_path):
    from tests.encoders import compvis_layout

    save_file(compvis_layout.unet_tensors(models["ldm"]), tmp_path / "model.safetensors")
    config, expected = load_unet(folders["ldm"])
    assert config.attention_levels == (1, 2) and config.heads == (1, 1, 1)
    assert_same(load_single_file_unet(tmp_path / "model.safetensors", config)[1], expected)
    with pytest.raises(ValueError, match="no moving average, names below model_ema"):
        load_single_file_unet(tmp_path / "model.safetensors", config, average=True)


@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_holds_the_same_text_encoder(version, make_torch_clip, tmp_path):
    model = make_torch_clip().text_model
    model.save_pretrained(tmp_path / "text_encoder")
    config, expected = load_clip_text(tmp_path / "text_encoder")
    tensors = load_file(tmp_path / "text_encoder" / "model.safetensors")
    tensors = {"text_model." + name.removeprefix("text_model."): t for name, t in tensors.items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(12)[None]
    prefix = "cond_stage_model.transformer."
    if version == 2:
        tensors, prefix = in_open_clip_names(tensors), "cond_stage_model.model."
    path = tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    assert_same(load_single_file_text(path, config)[1], expected)


def in_open_clip_names(tensors):
    """A text encoder as OpenCLIP names it, with one block more and the rest of a CLIP's text."""
    single = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    found = {theirs: tensors[f"text_model.{ours}"] for ours, theirs in single.items()}
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    parts |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for i, leaf in itertools.product(range(3), ("weight", "bias")):
        ours, theirs = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for part, renamed in parts.items():
            found[f"{theirs}.{renamed}.{leaf}"] = tensors[f"{ours}.{part}.{leaf}"]
        fused = [tensors[f"{ours}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
        found[f"{theirs}.attn.in_proj_{leaf}"] = np.concatenate(fused)
    last = {
        name.replace("blocks.2", "blocks.3"): 2 * t for name, t in found.items() if "ks.2" in name
    }
    rest = {"text_projection": np.ones((32, 20)), "logit_scale": np.ones(())}
    return {**found, **last, **{name: t.astype(np.float32) for name, t in rest.items()}}


@pytest.mark.parametrize(
    ("config", "count"),
    [(STABLE_DIFFUSION_1_TEXT, 123_060_480), (STABLE_DIFFUSION_2_TEXT, 340_387_840)],
)
def test_text_encoders_have_as_many_parameters_as_published(config, count):
    ids = jax.ShapeDtypeStruct((1, 77), np.int32)
    abstract = jax.eval_shape(TextTower(config).init, jax.random.key(0), ids)
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count


def test_a_single_file_holds_the_same_first_stage(single_file, folders, tmp_path):
    config, expected = load_first_stage(folders["kl"])
    assert_same(load_single_file_stage(single_file, config)[1], expected)
    alone = {
        name.removeprefix("first_stage_model."): array
        for name, array in load_file(single_file).items()
        if name.startswith("first_stage_model.")
    }
    alone["loss.discriminator.main.0.weight"] = np.ones(3, np.float32)
    save_file(alone, tmp_path / "vae.safetensors")
    assert_same(load_single_file_stage(tmp_path / "vae.safetensors", config)[1], expected)


def test_the_class_embedding_is_read(single_file):
    table = load_class_embedding(single_file, width=7, classes=10)
    np.testing.assert_array_equal(table, np.arange(77.0).reshape(11, 7))
    with pytest.raises(ValueError, match=r"embedding.weight is \(11, 7\), must be \(1001, 7\)"):
        load_class_embedding(single_file, width=7, classes=1000)


def test_published_sizes_are_recognised(tmp_path):
    """By a few shapes; the rest is then missing, by diffusers' names."""
    prefix = "model.diffusion_model."
    shapes = {
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.1.proj_in.weight": (320, 320),
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
    }
    tensors = {prefix + name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"683 missing: .*conv_in.bias"):
        load_single_file_unet(tmp_path / "m.safetensors")
    tensors[prefix + "input_blocks.0.0.weight"] = np.zeros((320, 9, 3, 3), np.float16)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"of no published size \(stable_diffusion_1, .*given"):
        load_single_file_unet(tmp_path / "m.safetensors")
    save_file(
        {
            "encoder.down.0.block.0.norm1.weight": np.ones(128, np.float32),
            "quantize.embedding.weight": np.ones((8192, 3), np.float32),
            "quant_conv.weight": np.ones((3, 3, 1, 1), np.float32),
        },
        tmp_path / "m.safetensors",
    )
    with pytest.raises(ValueError, match="202 missing"):
        load_single_file_stage(tmp_path / "m.safetensors")


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
def test_tensors_that_do_not_fit_are_named(name, change, cause, folders, tmp_path):
    copied(folders[name], tmp_path, change=change)
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
        ("unet", {"attention_head_dim": [1, 1]}, "heads = (1, 1) is not allowed"),
        ("unet", {"attention_head_dim": 3}, "heads = 3 is not allowed"),
        ("unet", {"layers_per_block": [1, 2]}, "layers_per_block = [1, 2]: must be int"),
        ("kl", {"shift_factor": 0.1}, "shift_factor = 0.1: must be None"),
        ("kl", {"scaling_factor": "x"}, "scaling_factor = 'x': must be float"),
        ("kl", {"down_block_types": ["DownEncoderBlock2D", "Other"]}, "must be 3 of Down"),
        ("vq", {"vq_embed_dim": 5}, "vq_embed_dim = 5: must be 3"),
        ("vq", {"norm_type": "spatial"}, "norm_type = 'spatial': must be 'group'"),
    ],
)
def test_configs_of_other_networks_are_named(name, config, cause, folders, tmp_path):
    copied(folders[name], tmp_path, config=config)
    with pytest.raises(ValueError) as error:
        loader(name)(tmp_path)
    assert cause in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_pickles_are_refused_with_how_to_convert_them(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders["unet"] / "config.json").read_text())
    (tmp_path / f"{STEM}.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=f"{STEM}.bin' is a pickle.*convert it .*python -c"):
        load_unet(tmp_path)
    ckpt = tmp_path / "sd-v1-4.ckpt"
    ckpt.write_bytes(b"PK\x03\x04")
    for load in (load_single_file_unet, load_single_file_stage, load_single_file_text):
        with pytest.raises(ValueError, match="sd-v1-4.ckpt' is a pickle.*sd-v1-4.safetensors"):
            load(ckpt)


def test_the_conversion_of_a_pickle_works(latent_oracles, tmp_path):
    """As the sentence says, in a shell of a user's."""
    import subprocess
    import sys

    source = tmp_path / "m.ckpt"
    shared = latent_oracles.torch.ones(3)
    state = {"a": shared, "b": shared, "step": 3}
    latent_oracles.torch.save({"state_dict": state, "epoch": 1}, source)
    with pytest.raises(ValueError) as error:
        load_single_file_unet(source)
    command = str(error.value).partition("python -c ")[2]
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True)
    assert set(load_file(tmp_path / "m.safetensors")) == {"a", "b"}
    with pytest.raises(ValueError, match="holds no U-Net: it has no names below model.diff"):
        load_single_file_unet(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds no text encoder"):
        load_single_file_text(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="holds no first stage"):
        load_single_file_stage(tmp_path / "m.safetensors")


def test_what_is_missing_is_named(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_unet(tmp_path)
    with pytest.raises(FileNotFoundError, match="none of \\*encoder.safetensors"):
        load_first_stage(tmp_path)
    (tmp_path / "config.json").write_text((folders["kl"] / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=f"neither {WEIGHTS} nor {WEIGHTS}.index"):
        load_first_stage(tmp_path)
    with pytest.raises(FileNotFoundError, match="weights '.*none.safetensors' do not exist"):
        load_single_file_unet(tmp_path / "none.safetensors")


def test_weights_that_do_not_fit_their_config_are_not_written(folders, tmp_path):
    config, params = load_first_stage(folders["vq"])
    del params["codebook"]
    with pytest.raises(ValueError, match="parameters do not fit the config: codebook"):
        save_first_stage_folder(tmp_path / "vae", config, params)
    assert not (tmp_path / "vae").exists()

"""Single files of CompVis: the same weights as in diffusers' folders, by its own converter."""

import itertools

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders import single_file as single_files
from contextdiff_jax.encoders.clip import TextTower
from contextdiff_jax.encoders.config import STABLE_DIFFUSION_1_TEXT, STABLE_DIFFUSION_2_TEXT
from contextdiff_jax.encoders.controlnet_weights import load_controlnet, read_controlnet
from contextdiff_jax.encoders.latent_weights import load_first_stage, load_unet
from contextdiff_jax.encoders.single_file import (
    load_class_embedding,
    load_single_file_stage,
    load_single_file_text,
    load_single_file_unet,
)
from contextdiff_jax.encoders.weights import load_clip_text


@pytest.fixture(scope="module")
def single_file(latent_models, tmp_path_factory):
    """A CompVis file of the U-Net and the first stage, with what else stands in such files."""
    from tests.encoders import compvis_layout

    unet = compvis_layout.unet_tensors(latent_models["unet"])
    average = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): 2 * array
        for name, array in unet.items()
    }
    counters = {"model_ema.decay": np.ones(()), "model_ema.num_updates": np.ones((), np.int32)}
    schedule = {name: np.ones(1000) for name in ("betas", "alphas_cumprod", "logvar")}
    table = {"cond_stage_model.embedding.weight": np.arange(77.0, dtype=np.float32).reshape(11, 7)}
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    stage = compvis_layout.stage_tensors(latent_models["kl"])
    save_file({**unet, **average, **counters, **schedule, **table, **stage}, path)
    return path


def test_a_single_file_holds_the_same_unet(single_file, latent_folders, latent_oracles):
    config, expected = load_unet(latent_folders["unet"])
    latent_oracles.assert_same(load_single_file_unet(single_file, config)[1], expected)
    averaged = load_single_file_unet(single_file, config, average=True)[1]
    doubled = traverse_util.flatten_dict(expected)
    doubled = traverse_util.unflatten_dict({path: 2 * array for path, array in doubled.items()})
    latent_oracles.assert_same(averaged, doubled)


def test_a_single_file_of_ldm_holds_the_same_unet(
    latent_models, latent_folders, tmp_path, latent_oracles
):
    from tests.encoders import compvis_layout

    save_file(compvis_layout.unet_tensors(latent_models["ldm"]), tmp_path / "model.safetensors")
    config, expected = load_unet(latent_folders["ldm"])
    assert config.attention_levels == (1, 2) and config.heads == (1, 1, 1)
    latent_oracles.assert_same(
        load_single_file_unet(tmp_path / "model.safetensors", config)[1], expected
    )
    with pytest.raises(ValueError, match="no moving average, names below model_ema"):
        load_single_file_unet(tmp_path / "model.safetensors", config, average=True)


def test_a_single_file_of_controlnet_holds_unet_and_branch(latent_oracles, tmp_path, monkeypatch):
    import diffusers

    from tests.encoders import compvis_layout, controlnet_folder
    from tests.encoders.latent_oracles import UNET_1, randomized

    model = randomized(diffusers.UNet2DConditionModel(**UNET_1), 6)
    model.save_pretrained(tmp_path / "unet")
    branch = controlnet_folder.model(layers_per_block=2, hint=(4, 6, 8, 10))
    branch.save_pretrained(tmp_path / "controlnet")
    path = controlnet_folder.write_single_file(tmp_path / "model.safetensors", branch)
    save_file({**load_file(path), **compvis_layout.unet_tensors(model)}, path)
    config, unet = load_unet(tmp_path / "unet")
    control = load_controlnet(
        tmp_path / "controlnet", read_controlnet(tmp_path / "controlnet", config)
    )
    monkeypatch.setattr(single_files, "_UNETS", (lambda: config,))
    found = single_files.single_file_weights(path)
    assert found.keys() == {"denoiser"}
    latent_oracles.assert_same(found["denoiser"].pop("control"), control)
    latent_oracles.assert_same(found["denoiser"], unet)


@pytest.mark.parametrize("version", [1, 2])
def test_a_single_file_holds_the_same_text_encoder(
    version, make_torch_clip, tmp_path, latent_oracles
):
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
    latent_oracles.assert_same(load_single_file_text(path, config)[1], expected)


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


def test_a_single_file_holds_the_same_first_stage(
    single_file, latent_folders, tmp_path, latent_oracles
):
    config, expected = load_first_stage(latent_folders["kl"])
    latent_oracles.assert_same(load_single_file_stage(single_file, config)[1], expected)
    alone = {
        name.removeprefix("first_stage_model."): array
        for name, array in load_file(single_file).items()
        if name.startswith("first_stage_model.")
    }
    alone["loss.discriminator.main.0.weight"] = np.ones(3, np.float32)
    save_file(alone, tmp_path / "vae.safetensors")
    latent_oracles.assert_same(
        load_single_file_stage(tmp_path / "vae.safetensors", config)[1], expected
    )


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


def test_pickles_are_refused_with_how_to_convert_them(tmp_path):
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="weights '.*none.safetensors' do not exist"):
        load_single_file_unet(tmp_path / "none.safetensors")

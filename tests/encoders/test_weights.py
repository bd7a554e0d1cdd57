"""Published folders: what is read, what is written, what is refused."""

import json
import re
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import CLIP_PRESETS
from contextdiff_jax.encoders.weights import (
    folder_identity,
    load_clip,
    load_clip_text,
    load_t5,
    save_clip_folder,
)

IDS = np.array([[97, 5, 8, 60, 98, 0, 0, 0]], np.int32)


def assert_same_params(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture
def copied(clip_folder, tmp_path):
    """Returns a function: change (tensors -> tensors) -> a copy of clip_folder with it made."""

    def copy(change):
        folder = tmp_path / "copy"
        shutil.copytree(clip_folder, folder)
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return copy


# ---- reading


def test_shards_hold_the_same_weights(torch_clip, clip_folder, tmp_path):
    torch_clip.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    whole, sharded = load_clip(clip_folder), load_clip(tmp_path)
    assert whole[0] == sharded[0]
    assert_same_params(whole[1], sharded[1])
    assert folder_identity(tmp_path) == folder_identity(clip_folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_upcast_exactly(torch_clip, tmp_path, dtype):
    import copy

    import torch

    half = copy.deepcopy(torch_clip).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path)
    _, params = load_clip(tmp_path)
    kernel = params["vision_model"]["layers"]["fc1"]["kernel"]
    assert kernel.dtype == np.float32
    theirs = half.vision_model.encoder.layers[1].mlp.fc1.weight.detach().float().numpy().T
    np.testing.assert_array_equal(kernel[1], theirs)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_parameters_can_be_held_in_bfloat16(clip_folder):
    config, params = load_clip(clip_folder, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    apply = jax.jit(lambda p: CLIP(config).apply({"params": p}, IDS, method=CLIP.encode_text))
    exact, rounded = apply(load_clip(clip_folder)[1])[0], apply(params)[0]
    assert rounded.dtype == jnp.float32
    assert jnp.linalg.norm(exact - rounded) / jnp.linalg.norm(exact) < 0.03


def openai_state_dict(torch_clip):
    """Rebuilds OpenAI's naming from its own module structure (clip/model.py)."""
    import torch

    def linear(name, layer):
        return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}

    def transformer(prefix, layers):
        state = {}
        for i, layer in enumerate(layers):
            name, attention = f"{prefix}transformer.resblocks.{i}", layer.self_attn
            parts = (attention.q_proj, attention.k_proj, attention.v_proj)
            state[f"{name}.attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
            state[f"{name}.attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
            state |= linear(f"{name}.attn.out_proj", attention.out_proj)
            state |= linear(f"{name}.ln_1", layer.layer_norm1)
            state |= linear(f"{name}.ln_2", layer.layer_norm2)
            state |= linear(f"{name}.mlp.c_fc", layer.mlp.fc1)
            state |= linear(f"{name}.mlp.c_proj", layer.mlp.fc2)
        return state

    text, vision = torch_clip.text_model, torch_clip.vision_model
    state = {
        "positional_embedding": text.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "text_projection": torch_clip.text_projection.weight.T,
        "logit_scale": torch_clip.logit_scale,
        "visual.class_embedding": vision.embeddings.class_embedding,
        "visual.positional_embedding": vision.embeddings.position_embedding.weight,
        "visual.proj": torch_clip.visual_projection.weight.T,
        "visual.conv1.weight": vision.embeddings.patch_embedding.weight,
        "input_resolution": torch.tensor(vision.config.image_size),
        "context_length": torch.tensor(text.config.max_position_embeddings),
        "vocab_size": torch.tensor(text.config.vocab_size),
        **linear("ln_final", text.final_layer_norm),
        **linear("visual.ln_pre", vision.pre_layrnorm),
        **linear("visual.ln_post", vision.post_layernorm),
        **transformer("", text.encoder.layers),
        **transformer("visual.", vision.encoder.layers),
    }
    return {name: value.detach().contiguous().numpy() for name, value in state.items()}


def test_openai_names_hold_the_same_weights(torch_clip, clip_folder, tmp_path):
    shutil.copy(clip_folder / "config.json", tmp_path)
    save_file(openai_state_dict(torch_clip), tmp_path / "model.safetensors")
    for load in (load_clip, load_clip_text):
        config, params = load(clip_folder)
        openai_config, openai_params = load(tmp_path)
        assert config == openai_config
        assert_same_params(params, openai_params)


def test_openai_sizes_are_read_from_shapes(make_torch_clip, tmp_path):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
    torch_clip = make_torch_clip(sizes, sizes)
    torch_clip.save_pretrained(tmp_path / "hf")
    (tmp_path / "openai").mkdir()
    save_file(openai_state_dict(torch_clip), tmp_path / "openai" / "model.safetensors")
    described, inferred = load_clip(tmp_path / "hf"), load_clip(tmp_path / "openai")
    assert inferred[0].text.stack == described[0].text.stack
    assert inferred[0].vision_stack == described[0].vision_stack
    assert (inferred[0].vocab_size, inferred[0].max_length) == (99, 12)
    assert (inferred[0].image_size, inferred[0].patch_size) == (24, 8)
    assert inferred[0].eot_token_id is None
    assert_same_params(described[1], inferred[1])


def test_position_ids_of_old_files_are_accepted(copied, clip_folder):
    buffers = {
        "text_model.embeddings.position_ids": np.arange(12)[None],
        "vision_model.embeddings.position_ids": np.arange(10)[None],
    }
    folder = copied(lambda tensors: tensors | buffers)
    assert_same_params(load_clip(folder)[1], load_clip(clip_folder)[1])


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection", "old names"])
def test_a_text_tower_alone_is_read(transformers, torch_clip, clip_folder, tmp_path, kind):
    # The names of CLIPTextModel have the prefix "text_model." in files of older versions.
    if kind == "CLIPTextModelWithProjection":
        model = transformers.CLIPTextModelWithProjection(torch_clip.config.text_config)
        model.text_model.load_state_dict(torch_clip.text_model.state_dict())
    else:
        model = torch_clip.text_model
    model.save_pretrained(tmp_path)
    if kind == "old names":
        tensors = load_file(tmp_path / "model.safetensors")
        tensors = {f"text_model.{name}": value for name, value in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors")
    config, params = load_clip_text(tmp_path)
    full_config, full_params = load_clip(clip_folder)
    assert config == full_config.text
    assert_same_params(params, full_params["text_model"])
    tokens, _, _ = TextTower(config).apply({"params": params}, IDS)
    assert tokens.shape == (1, 8, 32)


def test_sections_of_early_files_are_read(clip_folder, tmp_path):
    # Until 2023 a section was repeated as NAME_dict, with NAME left at the defaults.
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("text_config", "vision_config"):
        values[f"{name}_dict"] = values.pop(name)
        values[name] = {}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_clip(tmp_path)[0] == load_clip(clip_folder)[0]


# ---- T5


def test_t5_encoder_and_full_model_hold_the_same_encoder(transformers, torch_t5, tmp_path):
    encoder = transformers.T5EncoderModel(torch_t5.config)
    encoder.load_state_dict(torch_t5.state_dict(), strict=False)
    encoder.save_pretrained(tmp_path / "encoder")
    torch_t5.save_pretrained(tmp_path / "full")
    full = load_file(tmp_path / "full" / "model.safetensors")
    assert any(name.startswith("decoder.") for name in full)
    save_file(
        full | {"lm_head.weight": full["shared.weight"]}, tmp_path / "full" / "model.safetensors"
    )
    config, params = load_t5(tmp_path / "encoder")
    full_config, full_params = load_t5(tmp_path / "full")
    assert config == full_config
    assert_same_params(params, full_params)


def test_t5_tied_token_table(t5_folder, tmp_path):
    shutil.copytree(t5_folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    copy = {"encoder.embed_tokens.weight": tensors["shared.weight"]}
    rest = {name: value for name, value in tensors.items() if name != "shared.weight"}
    for stored in (tensors | copy, rest | copy):
        save_file(stored, path)
        assert_same_params(load_t5(tmp_path)[1], load_t5(t5_folder)[1])
    save_file(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"] + 1}, path)
    with pytest.raises(ValueError, match="embed_tokens.weight differs from shared.weight"):
        load_t5(tmp_path)


def test_t5_extras_and_ungated_models_are_refused(t5_folder, tmp_path):
    shutil.copytree(t5_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"adapter.weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 unexpected: adapter.weight$"):
        load_t5(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["feed_forward_proj"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="feed_forward_proj = 'relu': must be 'gated-gelu'"):
        load_t5(tmp_path)


# ---- writing


def test_a_saved_folder_is_read_by_transformers(transformers, tmp_path):
    import torch

    config = CLIP_PRESETS["tiny"]
    ids = np.array([[510, 4, 9, 511, 0, 0]], np.int32)
    pixels = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    module = CLIP(config)
    variables = jax.jit(module.init)(jax.random.key(0), ids, pixels)
    save_clip_folder(tmp_path, config, variables["params"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    model, report = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long(), torch.tensor(pixels).permute(0, 3, 1, 2))
    ours = module.apply(variables, ids, pixels)
    np.testing.assert_allclose(ours, theirs.logits_per_image.numpy(), atol=1e-4)
    loaded_config, params = load_clip(tmp_path)
    assert loaded_config.text == config.text
    assert loaded_config.vision_stack == config.vision_stack
    assert_same_params(params, jax.tree.map(np.asarray, nn.unbox(variables["params"])))


def test_saving_what_was_loaded_gives_the_same_tensors(clip_folder, tmp_path):
    save_clip_folder(tmp_path, *load_clip(clip_folder))
    assert folder_identity(tmp_path) == folder_identity(clip_folder)
    assert load_clip(tmp_path)[0] == load_clip(clip_folder)[0]


def test_parameters_of_another_config_are_not_saved(clip_folder, tmp_path):
    config, params = load_clip(clip_folder)
    with pytest.raises(ValueError, match="do not fit the config: text_model/.* and 40 more"):
        save_clip_folder(tmp_path, CLIP_PRESETS["tiny"], params)
    params = {name: value for name, value in params.items() if name != "logit_scale"}
    with pytest.raises(ValueError, match="parameters do not fit the config: logit_scale"):
        save_clip_folder(tmp_path, config, params)
    assert not list(tmp_path.iterdir())


def test_an_end_of_text_transformers_would_misread_is_refused(clip_folder, tmp_path):
    import dataclasses

    config, params = load_clip(clip_folder)
    with pytest.raises(ValueError, match="eot_token_id = 2: transformers reads it as"):
        save_clip_folder(tmp_path, dataclasses.replace(config, eot_token_id=2), params)


# ---- refusing


def test_one_error_names_everything_wrong(copied):
    def spoil(tensors):
        kept = {name: value for name, value in tensors.items() if ".layers.1.mlp." not in name}
        kept["text_projection.weight"] = kept["text_projection.weight"].T.copy()
        return kept | {"vision_model.extra": np.zeros(2), "other": np.zeros(2)}

    with pytest.raises(ValueError) as error:
        load_clip(copied(spoil))
    message = str(error.value)
    assert "8 missing: text_model.encoder.layers.1.mlp.fc1.bias, " in message
    assert "and 3 more" in message
    assert "2 unexpected: other, vision_model.extra" in message
    assert "1 of another shape: text_projection.weight is (32, 20), must be (20, 32)" in message


def test_quantized_weights_are_refused(copied):
    def quantize(tensors):
        return tensors | {"logit_scale": np.array(3, np.int8)}

    with pytest.raises(ValueError, match="cannot be read: logit_scale is I8, must be one of F32"):
        load_clip(copied(quantize))


def test_missing_files_are_named(clip_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        load_clip(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").touch()
    message = "neither model.safetensors nor model.safetensors.index.json; it has tokenizer.json"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_clip(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    message = r"pytorch_model.bin' is a pickle, .* \S*pytorch_model.bin \S*/model.safetensors$"
    with pytest.raises(ValueError, match=message):
        load_clip(tmp_path)
    shutil.copy(clip_folder / "model.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match="config.json' does not exist"):
        load_clip(tmp_path)


def test_damaged_files_are_named(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json' is not JSON"):
        load_clip(tmp_path)


def test_incomplete_shards_are_named(torch_clip, tmp_path):
    torch_clip.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    content = shards[0].read_bytes()
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks shards .* lists: {shards[0].name}"):
        load_clip(tmp_path)
    shards[0].write_bytes(shards[1].read_bytes())
    with pytest.raises(ValueError, match="lack tensors model.safetensors.index.json lists: "):
        load_clip(tmp_path)
    shards[0].write_bytes(content)
    load_clip(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json' has no weight_map from tensors to files"):
        load_clip(tmp_path)


def test_another_model_is_refused(t5_folder, clip_folder):
    with pytest.raises(ValueError, match="model_type = 't5': must be clip$"):
        load_clip(t5_folder)
    with pytest.raises(ValueError, match="model_type = 'clip': must be t5$"):
        load_t5(clip_folder)


def test_identity_follows_the_values(copied, clip_folder):
    def nudge(tensors):
        changed = tensors["text_projection.weight"].copy()
        changed[0, 0] = np.nextafter(changed[0, 0], np.float32(9))
        return tensors | {"text_projection.weight": changed}

    identity = folder_identity(clip_folder)
    assert re.fullmatch("sha256:[0-9a-f]{16}", identity)
    assert folder_identity(copied(nudge)) != identity

"""CLIP against transformers' torch CLIPModel, tensor by tensor."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.config import CLIP_PRESETS, CLIPConfig
from contextdiff_jax.encoders.published_configs import clip_config_json
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.networks import axes

EOT = 98
# Two texts of different length, padded behind EOT by different tokens.
IDS = np.array([[97, 5, 8, 60, EOT, 0, 0, 0], [97, 3, 3, 71, 20, 11, 4, EOT]], np.int32)


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def pixels_of(size, batch=2):
    return np.random.default_rng(1).normal(size=(batch, size, size, 3)).astype(np.float32)


def torch_outputs(model, ids, pixels):
    import torch

    with torch.no_grad():
        out = model(
            torch.tensor(ids).long(),
            torch.tensor(pixels).permute(0, 3, 1, 2),
            output_hidden_states=True,
        )
        text, image = out.text_model_output, out.vision_model_output
        return {
            "text_hidden": torch.stack(text.hidden_states),
            "image_hidden": torch.stack(image.hidden_states),
            "logits": out.logits_per_image,
            "text_tokens": text.last_hidden_state,
            "text_embedding": text.pooler_output,  # projected by CLIPModel
            "image_tokens": image.last_hidden_state,
            "image_embedding": image.pooler_output,
        }


def our_outputs(config, params, ids, pixels, names=None, dtype=jnp.float32):
    def everything(clip, ids, pixels):
        text_tokens, text_embedding = clip.encode_text(ids)
        image_tokens, image_embedding = clip.encode_image(pixels)
        outputs = {
            "text_hidden": clip.text_hidden_states(ids),
            "image_hidden": clip.image_hidden_states(pixels),
            "logits": clip(ids, pixels),
            "text_tokens": text_tokens,
            "text_embedding": text_embedding,
            "image_tokens": image_tokens,
            "image_embedding": image_embedding,
        }
        return {name: outputs[name] for name in names or outputs}

    clip = CLIP(config, dtype)
    return jax.jit(lambda p: clip.apply({"params": p}, ids, pixels, method=everything))(params)


@pytest.fixture(scope="module")
def small(clip_folder):
    return load_clip(clip_folder)


def test_every_hidden_state_agrees_with_torch(torch_clip, small):
    config, params = small
    pixels = pixels_of(config.image_size)
    theirs = torch_outputs(torch_clip, IDS, pixels)
    ours = our_outputs(config, params, IDS, pixels)
    assert ours["text_hidden"].shape == (4, 2, 8, 32)
    assert ours["image_hidden"].shape == (3, 2, 10, 48)
    for name, value in theirs.items():
        assert relative_error(ours[name], value) < 1e-4, name


def test_exact_gelu_and_largest_id_pooling_agree_with_torch(make_torch_clip, tmp_path):
    # eos_token_id 2 is how published files of before 2023 say "pool at the largest id".
    torch_clip = make_torch_clip({"hidden_act": "gelu", "eos_token_id": 2}, {"hidden_act": "gelu"})
    torch_clip.save_pretrained(tmp_path)
    config, params = load_clip(tmp_path)
    assert config.activation == "gelu" and config.eot_token_id is None
    pixels = pixels_of(config.image_size)
    ids = np.where(IDS == EOT, 90, IDS)  # an id that is no fixed EOT; 97 leads and is the largest
    theirs = torch_outputs(torch_clip, ids, pixels)
    ours = our_outputs(config, params, ids, pixels)
    for name in ("text_hidden", "text_embedding", "image_hidden", "image_embedding"):
        assert relative_error(ours[name], theirs[name]) < 1e-4, name


@pytest.mark.slow
def test_vit_b32_agrees_with_torch(transformers, make_torch_clip, tmp_path):
    text, vision = (
        config().to_dict()
        for config in (transformers.CLIPTextConfig, transformers.CLIPVisionConfig)
    )
    torch_clip = make_torch_clip(text, vision, projection_dim=512)
    torch_clip.save_pretrained(tmp_path)
    config, params = load_clip(tmp_path)
    assert config == dataclasses.replace(
        CLIP_PRESETS["vit_b32"], eot_token_id=49407, text_mlp_width=2048, vision_mlp_width=3072
    )
    ids = np.array([[49406, 320, 1125, 539, 320, 2368, 49407]], np.int32)
    pixels = pixels_of(224, batch=1)
    theirs = torch_outputs(torch_clip, ids, pixels)
    # The similarity goes through tokens, pooling and projections; all of them are compared above.
    ours = our_outputs(config, params, ids, pixels, ("text_hidden", "image_hidden", "logits"))
    for name, value in ours.items():
        assert relative_error(value, theirs[name]) < 1e-4, name


def abstract_params(config):
    ids = jnp.zeros((1, config.max_length), jnp.int32)
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), ids, pixels)["params"]


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(tree)))


def test_published_parameter_counts():
    params = abstract_params(CLIP_PRESETS["vit_b32"])
    assert count(params) == 151_277_313
    # The tables count each tower with its projection.
    assert count([params["text_model"], params["text_projection"]]) == 63_428_096
    assert count([params["vision_model"], params["visual_projection"]]) == 87_849_216


def test_presets_have_the_parameter_counts_of_transformers(transformers):
    import torch

    for name, config in CLIP_PRESETS.items():
        config.validate(name)
        description = clip_config_json(config)
        sections = (description["text_config"], description["vision_config"])
        published = transformers.CLIPConfig(
            text_config=sections[0],
            vision_config=sections[1],
            projection_dim=description["projection_dim"],
        )
        with torch.device("meta"):
            theirs = transformers.CLIPModel(published)
        assert count(abstract_params(config)) == sum(p.numel() for p in theirs.parameters())


def test_every_parameter_has_known_logical_axes():
    boxed = jax.tree.leaves(
        abstract_params(CLIP_PRESETS["tiny"]), is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )
    for box in boxed:
        assert isinstance(box, nn.LogicallyPartitioned)
        assert len(box.names) == box.value.ndim
        assert set(box.names) <= set(axes.AXES)
        assert len(set(box.names)) == len(box.names)
    assert sum(axes.LAYERS in box.names for box in boxed) == 2 * 16


def test_what_follows_eot_changes_nothing_before_it(small):
    config, params = small
    other = IDS.copy()
    other[0, 5:] = [7, EOT, 90]
    encode = jax.jit(lambda i: CLIP(config).apply({"params": params}, i, method=CLIP.encode_text))
    tokens, pooled = encode(IDS)
    other_tokens, other_pooled = encode(other)
    np.testing.assert_array_equal(pooled, other_pooled)
    np.testing.assert_array_equal(tokens[0, :5], other_tokens[0, :5])
    assert np.abs(tokens[0, 5:] - other_tokens[0, 5:]).max() > 0.1


def test_temperature_is_kept_below_100(small):
    config, params = small
    pixels = pixels_of(config.image_size)

    @jax.jit
    def logits(logit_scale):
        return CLIP(config).apply({"params": {**params, "logit_scale": logit_scale}}, IDS, pixels)

    cosines = np.asarray(logits(0.0))
    assert np.abs(cosines).max() <= 1.0
    np.testing.assert_allclose(logits(3.0), np.exp(3.0) * cosines, rtol=1e-5)
    np.testing.assert_allclose(logits(9.0), 100.0 * cosines, rtol=1e-5)


def test_bfloat16_compute_keeps_float32_at_the_border(small):
    config, params = small
    pixels = pixels_of(config.image_size)
    names = ("text_tokens", "text_embedding", "image_tokens", "image_embedding")
    exact = our_outputs(config, params, IDS, pixels, names)
    fast = our_outputs(config, params, IDS, pixels, names, jnp.bfloat16)
    for name in names:
        assert fast[name].dtype == jnp.float32
        error = jnp.linalg.norm(exact[name] - fast[name]) / jnp.linalg.norm(exact[name])
        assert 1e-5 < error < 0.03


def test_unusable_inputs_are_refused(small):
    config, params = small
    clip = CLIP(config)
    with pytest.raises(ValueError, match="13 tokens per text; the model has 12 positions"):
        clip.apply({"params": params}, jnp.zeros((1, 13), jnp.int32), method=CLIP.encode_text)
    with pytest.raises(ValueError, match=r"shape \(1, 32, 24, 3\); must be \(B, 24, 24, 3\)"):
        clip.apply({"params": params}, jnp.zeros((1, 32, 24, 3)), method=CLIP.encode_image)
    bad = clip.apply({"params": params}, jnp.full((1, 3), 99), method=CLIP.encode_text)[0]
    assert np.isnan(bad).all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("text_heads", 7, "clip.text_heads = 7: must divide the width 512"),
        ("patch_size", 30, "clip.patch_size = 30: must divide image_size 224"),
        ("vocab_size", 0, "clip.vocab_size = 0: must be at least 1"),
        ("eot_token_id", 49408, "clip.eot_token_id = 49408: must be below vocab_size 49408"),
        ("activation", "relu", "clip.activation = 'relu': must be one of quick_gelu, gelu"),
    ],
)
def test_impossible_sizes_are_refused(field, value, message):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(CLIPConfig(), **{field: value}).validate()
    assert str(error.value) == message

"""Frozen encoders as the tasks use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.frozen import clip_image_tokens, load_text_encoder, text_encoder
from contextdiff_jax.encoders.preprocess import CLIP_MEAN, CLIP_STD
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.encoders.weights import folder_identity, load_clip

CAPTIONS = ["a red cat on a mat", "a blue dog"] * 3
PROMPTS = ["a red cat", "a blue dog on a mat", ""]
VOCABULARY = {"vocab_size": 300}


@pytest.fixture(scope="module")
def clip(make_torch_clip, tmp_path_factory):
    """A CLIP folder with a tokenizer whose end token the model pools at, and the torch model."""
    folder = tmp_path_factory.mktemp("clip_with_tokenizer")
    tokenizer = train_tokenizer(CAPTIONS, 300, 12, folder)
    model = make_torch_clip({**VOCABULARY, "eos_token_id": tokenizer.eot_token_id})
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def t5(make_torch_t5, tmp_path_factory):
    """A T5 folder with its tokenizer in a sub-folder, and the torch model."""
    folder = tmp_path_factory.mktemp("t5_with_tokenizer")
    train_tokenizer(CAPTIONS, 300, 12, folder / "tokenizer")
    model = make_torch_t5("T5EncoderModel", **VOCABULARY)
    model.save_pretrained(folder)
    return folder, model


def test_clip_text_tokens_agree_with_torch(clip):
    import torch

    folder, model = clip
    encoder = load_text_encoder("clip", folder)
    ids, mask = encoder.tokenizer(PROMPTS)
    tokens, out_mask = jax.jit(encoder.encode)(encoder.params, ids, mask)
    with torch.no_grad():
        theirs = model.text_model(torch.tensor(ids).long()).last_hidden_state.numpy()
    assert tokens.shape == (3, encoder.max_length, encoder.width) == (3, 12, 32)
    np.testing.assert_array_equal(mask, out_mask)
    np.testing.assert_allclose(tokens, np.where(mask[..., None], theirs, 0), atol=2e-4)


def test_t5_text_tokens_agree_with_torch(t5):
    import torch

    folder, model = t5
    encoder = load_text_encoder("t5", folder)
    ids, mask = encoder.tokenizer(PROMPTS)
    tokens, _ = jax.jit(encoder.encode)(encoder.params, ids, mask)
    with torch.no_grad():
        theirs = model(torch.tensor(ids).long(), torch.tensor(mask).long()).last_hidden_state
    np.testing.assert_allclose(tokens, np.where(mask[..., None], theirs.numpy(), 0), atol=2e-4)


def test_dtypes_and_length_are_as_asked(t5):
    encoder = load_text_encoder("t5", t5[0], jnp.bfloat16, param_dtype=jnp.bfloat16, max_length=7)
    assert {leaf.dtype for leaf in jax.tree.leaves(encoder.params)} == {jnp.dtype(jnp.bfloat16)}
    assert encoder.module.dtype == jnp.bfloat16
    tokens, _ = encoder.encode(encoder.params, *encoder.tokenizer(PROMPTS))
    assert tokens.dtype == jnp.float32
    assert tokens.shape == (3, 7, 32)


def test_clip_image_tokens_agree_with_torch(clip):
    import torch

    folder, model = clip
    config, params = load_clip(folder)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
    tokens = clip_image_tokens(CLIP(config), params, images)
    pixels = ((images + 1) / 2 - CLIP_MEAN) / CLIP_STD
    with torch.no_grad():
        theirs = model.vision_model(torch.tensor(pixels).float().permute(0, 3, 1, 2))
    np.testing.assert_allclose(tokens, theirs.last_hidden_state.numpy(), atol=2e-4)


def test_image_tokens_have_gradients_at_any_size(clip):
    config, params = load_clip(clip[0])
    images = jax.random.uniform(jax.random.key(0), (1, 20, 20, 3), minval=-1)
    gradient = jax.jit(
        jax.grad(lambda x: jnp.square(clip_image_tokens(CLIP(config), params, x)[:, 1:]).sum())
    )(images)
    assert gradient.shape == images.shape
    assert jnp.isfinite(gradient).all() and (gradient != 0).all()


def test_identity_joins_weights_and_vocabulary(clip, tmp_path):
    folder = clip[0]
    encoder = load_text_encoder("clip", folder)
    assert encoder.identity == f"{folder_identity(folder)}/{encoder.tokenizer.identity}"


def test_what_does_not_belong_together_is_refused(clip, t5, tmp_path):
    encoder = load_text_encoder("clip", clip[0])
    module, params = encoder.module, encoder.params
    long = train_tokenizer(CAPTIONS, 300, 13, tmp_path / "long")
    with pytest.raises(ValueError, match="max_length = 13: must not exceed the text encoder's 12"):
        text_encoder(module, params, long, "")
    other = train_tokenizer(["zebras zebras"], 300, 12, tmp_path / "other")
    with pytest.raises(ValueError, match="tokenizer ends texts by token .* the text encoder by"):
        text_encoder(module, params, other, "")
    captions = ["seventeen magnificent hippopotamuses contemplated philosophical questions"] * 2
    large = train_tokenizer(captions, 400, 12, tmp_path / "large")
    assert large.vocab_size > 300
    with pytest.raises(ValueError, match="tokenizer has 3.. ids, the text encoder 300"):
        text_encoder(T5Encoder(load_text_encoder("t5", t5[0]).config), {}, large, "")
    with pytest.raises(ValueError, match="kind = 'bert': must be one of clip, t5"):
        load_text_encoder("bert", clip[0])


def test_a_folder_without_tokenizer_is_refused(clip_folder):
    with pytest.raises(FileNotFoundError, match="tokenizer folder .* has no tokenizer.json"):
        load_text_encoder("clip", clip_folder)

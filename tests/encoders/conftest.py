"""Oracles: transformers' torch models with random weights, no parameter left at its default."""

import pytest

CLIP_TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "eos_token_id": 98,
    "bos_token_id": None,
    "pad_token_id": None,
}
CLIP_VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 24,
    "patch_size": 8,
}
T5_SIZES = {
    "vocab_size": 99,
    "d_model": 32,
    "d_ff": 48,
    "num_heads": 3,
    "d_kv": 8,
    "num_layers": 3,
    "feed_forward_proj": "gated-gelu",
}


@pytest.fixture(scope="session")
def transformers():
    """The transformers package with torch, or a skip."""
    pytest.importorskip("torch", reason="the oracle is transformers' torch model")
    return pytest.importorskip("transformers", reason="the oracle is transformers' torch model")


def randomized(model):
    """Draws every parameter: kernels of unit gain, biases and norms far from their defaults."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif parameter.ndim >= 2 and "embedding" not in name and "shared" not in name:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name != "logit_scale":
                parameter.copy_(0.5 * noise)
            else:
                parameter.fill_(3.1)
    return model.eval()


@pytest.fixture(scope="session")
def make_torch_clip(transformers):
    """Returns a function: overrides of the two sections -> a random CLIPModel."""

    def make(text=(), vision=(), **top):
        config = transformers.CLIPConfig(
            text_config={**CLIP_TEXT, **dict(text)},
            vision_config={**CLIP_VISION, **dict(vision)},
            **{"projection_dim": 20, **top},
        )
        return randomized(transformers.CLIPModel(config))

    return make


@pytest.fixture(scope="session")
def torch_clip(make_torch_clip):
    """A small random CLIPModel."""
    return make_torch_clip()


@pytest.fixture(scope="session")
def clip_folder(torch_clip, tmp_path_factory):
    """torch_clip as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("clip")
    torch_clip.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_torch_t5(transformers):
    """Returns a function: name of a class of transformers, overrides -> a random T5 v1.1."""

    def make(kind, **sizes):
        config = transformers.T5Config(**{**T5_SIZES, **sizes}, tie_word_embeddings=False)
        return randomized(getattr(transformers, kind)(config))

    return make


@pytest.fixture(scope="session")
def torch_t5(make_torch_t5):
    """A small random T5 v1.1, encoder and decoder."""
    return make_torch_t5("T5ForConditionalGeneration")


@pytest.fixture(scope="session")
def t5_folder(torch_t5, tmp_path_factory):
    """torch_t5 as save_pretrained writes it: the full model."""
    folder = tmp_path_factory.mktemp("t5")
    torch_t5.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def latent_models(latent_oracles):
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


@pytest.fixture(scope="session")
def latent_folders(latent_models, tmp_path_factory):
    """{name: folder as diffusers writes it}."""
    found = {}
    for name, model in latent_models.items():
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found

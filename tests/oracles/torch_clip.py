"""A small random CLIP of transformers with its processor, in the form torchmetrics takes."""

import pathlib

import torch
import transformers

from contextdiff_jax.encoders.tokenizers import train_tokenizer

CAPTIONS = (
    "a red circle left of a blue square",
    "two cats asleep on a sofa",
    "a man riding a wave",
    "A photo depicts a dog in the snow",
)
_SIDE = 32


class PooledFeatures(torch.nn.Module):
    """A CLIPModel whose feature methods return arrays, as torchmetrics 1.9 expects them."""

    def __init__(self, model: transformers.CLIPModel):
        super().__init__()
        self.model = model
        self.config = model.config

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns image embeddings (B, D)."""
        return self.model.get_image_features(pixel_values).pooler_output

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns text embeddings (B, D)."""
        return self.model.get_text_features(ids, mask).pooler_output


def save_random_clip(
    folder: pathlib.Path,
) -> tuple[PooledFeatures, transformers.CLIPProcessor]:
    """Writes weights and a tokenizer trained on CAPTIONS; returns what reads the same in torch.

    Its cosines of drawn images and CAPTIONS are positive, so that no score is cut at 0.
    """
    tokenizer = train_tokenizer(CAPTIONS, 300, 40, folder)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": tokenizer.max_length,
            "eos_token_id": tokenizer.eot_token_id,
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": _SIDE,
            "patch_size": 8,
        },
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    model.text_projection.weight.neg_()
    model.save_pretrained(folder)
    processor = transformers.CLIPProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
        ),
        tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(str(folder)),
    )
    return PooledFeatures(model), processor

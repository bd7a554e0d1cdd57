"""CLIP state dicts in OpenAI's original naming, presented in Hugging Face's."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from contextdiff_jax.encoders.config import CLIPConfig
from contextdiff_jax.encoders.tensor_files import Tensor

# Present in every such state dict, in no other.
_MARKER = "visual.conv1.weight"
_HEAD_DIM = 64  # of every published size; the number of heads is not in the file

# Names outside the blocks. Projections are (in, out) there, (out, in) in linear layers.
_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
_BLOCK = re.compile(r"(?P<visual>visual\.)?transformer\.resblocks\.(?P<i>\d+)\.(?P<rest>.+)")
_BLOCK_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# What sizes are read from, and how many axes it has.
_SIZED = {
    _MARKER: 4,
    "visual.positional_embedding": 2,
    "text_projection": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
}
# Numbers stored beside the weights in the TorchScript archives.
_SCALARS = ("input_resolution", "context_length", "vocab_size")


def is_openai(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of OpenAI's state dict."""
    return _MARKER in tensors


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the same weights under Hugging Face's names; unknown names stay as they are."""
    renamed = {}
    for name, tensor in tensors.items():
        if name not in _SCALARS:
            renamed.update(_renamed(name, tensor))
    return renamed


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in _NAMES:
        return {_NAMES[name]: tensor}
    if name in _TRANSPOSED:
        return {
            _TRANSPOSED[name]: dataclasses.replace(
                tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().T
            )
        }
    block = _BLOCK.fullmatch(name)
    if not block:
        return {name: tensor}
    tower = "vision_model" if block["visual"] else "text_model"
    prefix = f"{tower}.encoder.layers.{block['i']}."
    if block["rest"] in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = block["rest"].removeprefix("attn.in_proj_")
        rows, left = divmod(tensor.shape[0], 3) if tensor.shape else (0, 1)
        if left:
            return {name: tensor}  # which is refused as unexpected
        return {
            f"{prefix}self_attn.{part}_proj.{kind}": dataclasses.replace(
                tensor,
                shape=(rows, *tensor.shape[1:]),
                read=_rows(tensor, slice(i * rows, (i + 1) * rows)),
            )
            for i, part in enumerate("qkv")
        }
    module, _, kind = block["rest"].rpartition(".")
    return {f"{prefix}{_BLOCK_NAMES[module]}.{kind}" if module in _BLOCK_NAMES else name: tensor}


def _rows(tensor: Tensor, rows: slice) -> Callable[[], np.ndarray]:
    return lambda: tensor.read()[rows]


def config_from_shapes(tensors: Mapping[str, Tensor], where: str) -> CLIPConfig:
    """Returns the sizes of an OpenAI state dict, as its own loader infers them."""
    missing = [name for name in _SIZED if name not in tensors]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}, which its sizes are read from")
    for name, axes in _SIZED.items():
        shape = tensors[name].shape
        if len(shape) != axes or 0 in shape:
            raise ValueError(f"{name} of {where} is {shape}, must have {axes} axes, none empty")
    shapes = [tensors[name].shape for name in _SIZED]
    (vision_width, _, _, patch), (places, _), (text_width, projection_dim) = shapes[:3]
    (max_length, _), (vocab_size, _) = shapes[3:]
    grid = math.isqrt(places - 1)
    blocks = [match for match in map(_BLOCK.fullmatch, tensors) if match]
    layers = {
        tower: len({block["i"] for block in blocks if bool(block["visual"]) == (tower == "vision")})
        for tower in ("text", "vision")
    }
    config = CLIPConfig(
        text_width=text_width,
        text_layers=layers["text"],
        text_heads=text_width // _HEAD_DIM,
        vocab_size=vocab_size,
        max_length=max_length,
        vision_width=vision_width,
        vision_layers=layers["vision"],
        vision_heads=vision_width // _HEAD_DIM,
        image_size=grid * patch,
        patch_size=patch,
        projection_dim=projection_dim,
    )
    config.validate(where)
    return config

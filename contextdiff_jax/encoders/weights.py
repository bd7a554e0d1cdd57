"""Loading and saving published CLIP and T5 weights: config.json and safetensors, without torch.

A folder is what `save_pretrained` of transformers writes: config.json with model.safetensors, or
with shards and model.safetensors.index.json. CLIP may also carry OpenAI's original names.
Parameters are float32 whatever the files hold, unless another dtype is asked for.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import CLIPConfig, CLIPTextConfig, T5Config
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry, from_params, to_params
from contextdiff_jax.encoders.openai_names import config_from_shapes, is_openai, to_hugging_face
from contextdiff_jax.encoders.published_configs import (
    clip_config_json,
    clip_text_config_json,
    read_clip_config,
    read_clip_text_config,
    read_t5_config,
)
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.encoders.tensor_files import (
    VARIANTS,
    Tensor,
    content_hash,
    open_folder,
    write_folder,
)

# Position indices that older versions of transformers stored beside the weights.
_CLIP_BUFFERS = re.compile(r"(text_model|vision_model)\.embeddings\.position_ids")
# Parts of a CLIP beside its text tower: another tower, both projections, the temperature.
_BESIDE_TEXT = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
# Parts of a full T5 beside its encoder. A copy of shared.weight is handled by _with_shared.
_BESIDE_T5_ENCODER = ("decoder.", "lm_head.")


def _linear(path: str, name: str, bias: bool = True) -> list[Entry]:
    entries = [Entry(f"{path}/kernel", f"{name}.weight", "linear")]
    return entries + ([Entry(f"{path}/bias", f"{name}.bias")] if bias else [])


def _norm(path: str, name: str) -> list[Entry]:
    return [Entry(f"{path}/scale", f"{name}.weight"), Entry(f"{path}/bias", f"{name}.bias")]


def _clip_blocks(tower: str) -> list[Entry]:
    path, name = f"{tower}/layers", f"{tower}.encoder.layers.{{i}}"
    attention = [
        entry
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj"))
        for entry in _linear(f"{path}/self_attention/{ours}", f"{name}.self_attn.{theirs}")
    ]
    return [
        *attention,
        *_norm(f"{path}/layer_norm1", f"{name}.layer_norm1"),
        *_norm(f"{path}/layer_norm2", f"{name}.layer_norm2"),
        *_linear(f"{path}/fc1", f"{name}.mlp.fc1"),
        *_linear(f"{path}/fc2", f"{name}.mlp.fc2"),
    ]


_TEXT = "text_model.embeddings"
_VISION = "vision_model.embeddings"
CLIP_TABLE: tuple[Entry, ...] = (
    Entry("text_model/token_embedding", f"{_TEXT}.token_embedding.weight"),
    Entry("text_model/position_embedding", f"{_TEXT}.position_embedding.weight"),
    *_clip_blocks("text_model"),
    *_norm("text_model/final_layer_norm", "text_model.final_layer_norm"),
    Entry("vision_model/class_embedding", f"{_VISION}.class_embedding"),
    Entry("vision_model/patch_embedding/kernel", f"{_VISION}.patch_embedding.weight", "conv"),
    Entry("vision_model/position_embedding", f"{_VISION}.position_embedding.weight"),
    *_norm("vision_model/pre_layer_norm", "vision_model.pre_layrnorm"),  # (sic)
    *_clip_blocks("vision_model"),
    *_norm("vision_model/post_layer_norm", "vision_model.post_layernorm"),
    *_linear("text_projection", "text_projection", bias=False),
    *_linear("visual_projection", "visual_projection", bias=False),
    Entry("logit_scale", "logit_scale"),
)
_TEXT_TABLE = tuple(entry for entry in CLIP_TABLE if entry.path.startswith("text_model/"))

_T5_BLOCK = "encoder.block.{i}.layer"
T5_TABLE: tuple[Entry, ...] = (
    Entry("token_embedding", "shared.weight"),
    Entry(
        "relative_attention_bias",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    Entry("layers/attention_norm/scale", f"{_T5_BLOCK}.0.layer_norm.weight"),
    *_linear("layers/self_attention/q", f"{_T5_BLOCK}.0.SelfAttention.q", bias=False),
    *_linear("layers/self_attention/k", f"{_T5_BLOCK}.0.SelfAttention.k", bias=False),
    *_linear("layers/self_attention/v", f"{_T5_BLOCK}.0.SelfAttention.v", bias=False),
    *_linear("layers/self_attention/out", f"{_T5_BLOCK}.0.SelfAttention.o", bias=False),
    Entry("layers/mlp_norm/scale", f"{_T5_BLOCK}.1.layer_norm.weight"),
    *_linear("layers/wi_0", f"{_T5_BLOCK}.1.DenseReluDense.wi_0", bias=False),
    *_linear("layers/wi_1", f"{_T5_BLOCK}.1.DenseReluDense.wi_1", bias=False),
    *_linear("layers/wo", f"{_T5_BLOCK}.1.DenseReluDense.wo", bias=False),
    Entry("final_norm/scale", "encoder.final_layer_norm.weight"),
)


def load_clip(
    folder: str | pathlib.Path, dtype: Any = np.float32
) -> tuple[CLIPConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a CLIP folder, for `CLIP(config)`.

    OpenAI's names are recognised; sizes are then read from the shapes where config.json is
    missing. `embeddings.position_ids` buffers are ignored.

    Args:
      folder: Hugging Face folder.
      dtype: of the parameters returned, numpy arrays.

    Raises:
      FileNotFoundError: the folder or a file of it is missing.
      ValueError: it is no CLIP, or tensors are missing, unexpected or of another shape.
    """
    folder = local_folder(folder)
    tensors = open_folder(folder)
    if is_openai(tensors) and not (folder / "config.json").is_file():
        config = config_from_shapes(tensors, str(folder))
    else:
        config = read_clip_config(folder)
    tensors = to_hugging_face(tensors) if is_openai(tensors) else tensors

    def ignored(name: str) -> bool:
        return _CLIP_BUFFERS.fullmatch(name) is not None

    abstract = _abstract_clip(config)
    return config, to_params(CLIP_TABLE, abstract, tensors, ignored, f"{str(folder)!r}", dtype)


def load_clip_text(
    folder: str | pathlib.Path, dtype: Any = np.float32
) -> tuple[CLIPTextConfig, dict[str, Any]]:
    """Returns the sizes and parameters of the text tower alone, for `TextTower(config)`.

    Reads what load_clip reads, and folders of a text tower alone (CLIPTextModel, such as Stable
    Diffusion's text_encoder, its fp16 variant too, with or without the prefix "text_model." in its
    names). Ignored are
    `embeddings.position_ids` and whatever begins with vision_model., visual_projection.,
    text_projection. or logit_scale. Raises as load_clip does.
    """
    folder = local_folder(folder)
    tensors = open_folder(folder, variants=VARIANTS)
    if is_openai(tensors) and not (folder / "config.json").is_file():
        config = config_from_shapes(tensors, str(folder)).text
    else:
        config = read_clip_text_config(folder)
    tensors = to_hugging_face(tensors) if is_openai(tensors) else tensors
    if "embeddings.token_embedding.weight" in tensors:
        tensors = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    return config, clip_text_params(config, tensors, f"{str(folder)!r}", dtype)


def clip_text_params(
    config: CLIPTextConfig, tensors: Mapping[str, Tensor], where: str, dtype: Any = np.float32
) -> dict[str, Any]:
    """Returns the text tower's parameters of tensors with Hugging Face's names.

    Ignores and raises what load_clip_text does.
    """

    def ignored(name: str) -> bool:
        return name.startswith(_BESIDE_TEXT) or _CLIP_BUFFERS.fullmatch(name) is not None

    abstract = _abstract_text(config)
    return to_params(_TEXT_TABLE, abstract, tensors, ignored, where, dtype)["text_model"]


def load_t5(folder: str | pathlib.Path, dtype: Any = np.float32) -> tuple[T5Config, dict[str, Any]]:
    """Returns the sizes and parameters of a T5 v1.1 encoder, for `T5Encoder(config)`.

    Reads folders of the encoder alone and of the full model. Ignored is whatever begins with
    decoder. or lm_head.; a tied copy of the token table, encoder.embed_tokens.weight, must equal
    shared.weight or stand in for it. Raises as load_clip does.
    """
    folder = local_folder(folder)
    tensors = _with_shared(open_folder(folder), str(folder))
    config = read_t5_config(folder)
    ids = jnp.zeros((1, 2), jnp.int32)
    abstract = jax.eval_shape(T5Encoder(config).init, jax.random.key(0), ids, ids == 0)["params"]

    def ignored(name: str) -> bool:
        return name.startswith(_BESIDE_T5_ENCODER)

    return config, to_params(T5_TABLE, abstract, tensors, ignored, f"{str(folder)!r}", dtype)


def _with_shared(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    tensors = dict(tensors)
    tied = tensors.pop("encoder.embed_tokens.weight", None)
    if tied is None:
        return tensors
    shared = tensors.setdefault("shared.weight", tied)
    if not np.array_equal(shared.read(), tied.read()):
        raise ValueError(f"{where!r}: encoder.embed_tokens.weight differs from shared.weight")
    return tensors


def save_clip_folder(folder: str | pathlib.Path, config: CLIPConfig, params: Any) -> None:
    """Writes config.json and model.safetensors (float32), as transformers' CLIPModel reads them.

    `params` are those of `CLIP(config)`, boxed or not. Each file appears whole or not at all.
    Raises ValueError where `params` do not fit `config`.
    """
    tensors = from_params(CLIP_TABLE, _abstract_clip(config), params)
    write_folder(folder, clip_config_json(config), tensors)


def save_clip_text_folder(folder: str | pathlib.Path, config: CLIPTextConfig, params: Any) -> None:
    """Writes the text tower alone, as transformers' CLIPTextModel reads it, see save_clip_folder.

    `params` are those of `TextTower(config)`.
    """
    tree = {"text_model": params}
    tensors = from_params(_TEXT_TABLE, _abstract_text(config), tree)
    write_folder(folder, clip_text_config_json(config), tensors)


def _abstract_text(config: CLIPTextConfig) -> Any:
    ids = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    tower = jax.eval_shape(TextTower(config).init, jax.random.key(0), ids)["params"]
    return {"text_model": tower}


def folder_identity(folder: str | pathlib.Path) -> str:
    """Returns a short identity of the weights of a folder: "sha256:" and 16 hex digits.

    It depends on the names, dtypes, shapes and values of the tensors, not on how they are split
    into files. Reads all of them once.
    """
    return f"sha256:{content_hash(open_folder(local_folder(folder), variants=VARIANTS))}"


def _abstract_clip(config: CLIPConfig) -> Any:
    ids = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), ids, pixels)["params"]

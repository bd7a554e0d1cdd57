"""Model sizes from and to the config.json files of Hugging Face folders."""

import pathlib
from collections.abc import Mapping
from typing import Any

from contextdiff_jax.encoders.config import CLIPConfig, CLIPTextConfig, T5Config
from contextdiff_jax.encoders.config_fields import read_fields, written_keys
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.scalars import read_scalar, shown

# transformers reads this eos_token_id as "pool at the largest id" (the files of before mid-2023).
_LARGEST_ID = 2

# Keys of a section of config.json -> (field of CLIPConfig, default of the key). Files omit keys.
_TEXT_FIELDS = {
    "hidden_size": ("text_width", 512),
    "num_hidden_layers": ("text_layers", 12),
    "num_attention_heads": ("text_heads", 8),
    "intermediate_size": ("text_mlp_width", 2048),
    "vocab_size": ("vocab_size", 49408),
    "max_position_embeddings": ("max_length", 77),
}
_VISION_FIELDS = {
    "hidden_size": ("vision_width", 768),
    "num_hidden_layers": ("vision_layers", 12),
    "num_attention_heads": ("vision_heads", 12),
    "intermediate_size": ("vision_mlp_width", 3072),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
}
_TOP_FIELDS = {
    "projection_dim": ("projection_dim", 512),
    "logit_scale_init_value": ("logit_scale_init", 2.6592),
}
_SHARED_FIELDS = {
    "hidden_act": ("activation", "quick_gelu"),
    "layer_norm_eps": ("norm_eps", 1e-5),
}
_T5_FIELDS = {
    "d_model": ("width", 512),
    "d_ff": ("mlp_width", 2048),
    "num_heads": ("heads", 8),
    "num_layers": ("layers", 6),
    "d_kv": ("head_dim", 64),
    "vocab_size": ("vocab_size", 32128),
    "relative_attention_num_buckets": ("num_buckets", 32),
    "relative_attention_max_distance": ("max_distance", 128),
    "layer_norm_epsilon": ("norm_eps", 1e-6),
}


def read_clip_config(folder: pathlib.Path) -> CLIPConfig:
    """Returns the sizes of a folder with both towers (model_type "clip")."""
    values, where = _read(folder, ("clip",))
    text, vision = (_section(values, f"{tower}_config", where) for tower in ("text", "vision"))
    shared, of_vision = (read_fields(_SHARED_FIELDS, part, where) for part in (text, vision))
    if shared != of_vision:
        raise ValueError(f"{where}: the towers differ, text {shared}, vision {of_vision}")
    if vision.get("num_channels", 3) != 3:
        raise ValueError(f"{where}: num_channels = {shown(vision['num_channels'])}: must be 3")
    config = CLIPConfig(
        **read_fields(_TEXT_FIELDS, text, where),
        **read_fields(_VISION_FIELDS, vision, where),
        **shared,
        **read_fields(_TOP_FIELDS, values, where),
        eot_token_id=_eot(text, where),
    )
    config.validate(where)
    return config


def read_clip_text_config(folder: pathlib.Path) -> CLIPTextConfig:
    """Returns the sizes of the text tower, of a folder with both towers or with it alone."""
    values, where = _read(folder, ("clip", "clip_text_model"))
    text = _section(values, "text_config", where) if values["model_type"] == "clip" else values
    config = CLIPConfig(
        **read_fields(_TEXT_FIELDS | _SHARED_FIELDS, text, where), eot_token_id=_eot(text, where)
    )
    config.validate(where)
    return config.text


def clip_config_json(config: CLIPConfig) -> dict[str, Any]:
    """Returns the config.json of transformers' CLIPModel.

    Raises ValueError for eot_token_id 2, which transformers does not read as a token.
    """
    if config.eot_token_id == _LARGEST_ID:
        raise ValueError(
            f"eot_token_id = {_LARGEST_ID}: transformers reads it as 'the largest id'; "
            "use another id for the end of text"
        )
    eos = _LARGEST_ID if config.eot_token_id is None else config.eot_token_id
    shared = written_keys(_SHARED_FIELDS, config) | {"projection_dim": config.projection_dim}
    text = written_keys(_TEXT_FIELDS, config) | {"intermediate_size": config.text.mlp_width}
    vision = written_keys(_VISION_FIELDS, config) | {
        "intermediate_size": config.vision_stack.mlp_width
    }
    # transformers wants ids inside the vocabulary, or none; the model uses neither.
    tokens = {"eos_token_id": eos, "bos_token_id": None, "pad_token_id": None}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": config.projection_dim,
        "logit_scale_init_value": config.logit_scale_init,
        "text_config": {"model_type": "clip_text_model", **text, **shared, **tokens},
        "vision_config": {"model_type": "clip_vision_model", **vision, **shared},
    }


def clip_text_config_json(config: CLIPTextConfig) -> dict[str, Any]:
    """Returns the config.json of transformers' CLIPTextModel."""
    eos = _LARGEST_ID if config.eot_token_id is None else config.eot_token_id
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "projection_dim": config.width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        # transformers wants ids inside the vocabulary, or none; the model uses neither.
        "eos_token_id": eos,
        "bos_token_id": None,
        "pad_token_id": None,
    }


def read_t5_config(folder: pathlib.Path) -> T5Config:
    """Returns the sizes of a T5 v1.1 folder; ValueError for the original T5's ungated MLPs."""
    values, where = _read(folder, ("t5",))
    mlp = values.get("feed_forward_proj", "relu")
    if mlp != "gated-gelu":
        raise ValueError(
            f"{where}: feed_forward_proj = {shown(mlp)}: must be 'gated-gelu' (T5 v1.1 or Flan-T5)"
        )
    config = T5Config(**read_fields(_T5_FIELDS, values, where))
    config.validate(where)
    return config


def _read(folder: pathlib.Path, kinds: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    path = pathlib.Path(folder) / "config.json"
    values = read_object(path)
    kind = values.get("model_type")
    if kind not in kinds:
        raise ValueError(f"{str(path)!r}: model_type = {shown(kind)}: must be {' or '.join(kinds)}")
    return values, str(path)


def _section(values: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    # Early files repeat a section as NAME_dict, and transformers lets that one win.
    for key in (f"{name}_dict", name):
        if values.get(key) is not None:
            if not isinstance(values[key], dict):
                raise ValueError(f"{where}: {key} = {shown(values[key])}: must be an object")
            return values[key]
    return {}


def _eot(text: Mapping[str, Any], where: str) -> int | None:
    eot = text.get("eos_token_id", _LARGEST_ID)
    return None if eot in (None, _LARGEST_ID) else read_scalar(int, eot, f"{where}: eos_token_id")

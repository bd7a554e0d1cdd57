"""Sizes of latent U-Nets and first stages from and to diffusers' config.json.

Keys that a file omits have the defaults of diffusers' classes. What a key says that our networks do
not have is refused by name, so that no weights run through another network than their own.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from contextdiff_jax.encoders.config_fields import read_fields, written_keys
from contextdiff_jax.networks.latent_config import (
    AutoencoderConfig,
    LatentUNetConfig,
    TinyAutoencoderConfig,
)
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.limits import check_limits
from contextdiff_jax.system.scalars import read_scalar, shown

UNET_CLASS = "UNet2DConditionModel"
OF_CLIPS = ("UNet3DConditionModel", "UNetPseudo3DConditionModel")  # Tune-A-Video, FateZero
_KINDS = {"AutoencoderKL": "kl", "VQModel": "vq"}
_TINY = "AutoencoderTiny"

_UNET_FIELDS = {
    "in_channels": ("image_channels", 4),
    "block_out_channels": ("channels", (320, 640, 1280, 1280)),
    "layers_per_block": ("num_blocks", 2),
    "transformer_layers_per_block": ("depth", 1),
    "cross_attention_dim": ("context_dim", 1280),
    "norm_num_groups": ("groups", 32),
    "use_linear_projection": ("linear_projection", False),
    "upcast_attention": ("upcast_attention", False),
    "sample_size": ("sample_size", 64),
}
_UNET_FIXED = {
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "reverse_transformer_layers_per_block": None,
    "attention_type": "default",
    "addition_embed_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "class_embeddings_concat": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
_THREE_D = re.compile("(Pseudo)?3D")
_BLOCK_KEYS = ("down_block_types", "mid_block_type", "up_block_types")
_ATTENDING, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP = {_ATTENDING: "CrossAttnUpBlock2D", _PLAIN: "UpBlock2D"}

_STAGE_FIELDS = {
    "in_channels": ("image_channels", 3),
    "block_out_channels": ("channels", (64,)),
    "layers_per_block": ("num_blocks", 1),
    "latent_channels": ("latent_channels", 4),
    "norm_num_groups": ("groups", 32),
    "sample_size": ("sample_size", 32),
}
_STAGE_FIXED = {"act_fn": "silu", "mid_block_add_attention": True}
_KIND_FIXED = {
    "kl": {
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
    },
    "vq": {"norm_type": "group", "lookup_from_codebook": False},
}
_CODES = {"num_vq_embeddings": ("codes", 256)}
# diffusers' default for VQModel is Stable Diffusion's, which no VQ stage was published with.
_SCALE = {
    "kl": {"scaling_factor": ("scaling_factor", 0.18215)},
    "vq": {"scaling_factor": ("scaling_factor", 1.0)},
}
_STAGE_BLOCKS = {
    False: ("DownEncoderBlock2D", "UpDecoderBlock2D"),
    True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"),
}

_TINY_FIELDS = {
    "in_channels": ("image_channels", 3),
    "latent_channels": ("latent_channels", 4),
    "num_encoder_blocks": ("encoder_blocks", (1, 3, 3, 3)),
    "num_decoder_blocks": ("decoder_blocks", (3, 3, 3, 1)),
}
_TINY_FIXED = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}


def read_unet_config(folder: os.PathLike, kinds: Sequence[str] = (UNET_CLASS,)) -> LatentUNetConfig:
    """Returns the sizes of a U-Net's folder, or of what has its encoder.

    kinds: its _class_name is one of them.

    Raises FileNotFoundError where config.json is missing, and ValueError, naming the key, where
    it is no JSON, of another class, or says what LatentUNet does not have.
    """
    values, where = _read(folder, tuple(kinds))
    values = _of_pictures(values) if set(kinds) & set(OF_CLIPS) else values
    check_fixed(_UNET_FIXED, values, where)
    fields = read_fields(_UNET_FIELDS, _without_null(values, "sample_size"), where)
    channels = fields["channels"]
    if UNET_CLASS in kinds:
        _check_equal(values, "out_channels", 4, fields["image_channels"], where)
    default = [_ATTENDING] * (len(channels) - 1) + [_PLAIN]
    levels = _attending(values, default, _UP, _ATTENDING, where)
    config = LatentUNetConfig(
        **fields, attention_levels=levels, heads=_heads(values, len(channels), where)
    )
    return _checked(config, where)


def _of_pictures(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with the names of the 2-D network's blocks."""

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return _THREE_D.sub("2D", value) if isinstance(value, str) else value

    return {key: renamed(values[key]) if key in _BLOCK_KEYS else values[key] for key in values}


def _heads(values: Mapping[str, Any], levels: int, where: str) -> tuple[int, ...]:
    # The key says the number of heads, whatever its name. num_attention_heads wins where given.
    key = (
        "attention_head_dim" if values.get("num_attention_heads") is None else "num_attention_heads"
    )
    heads = values.get(key, 8)
    each = heads if isinstance(heads, list) else [heads] * levels
    return tuple(read_scalar(int, number, f"{where}: {key}") for number in each)


def unet_config_json(config: LatentUNetConfig) -> dict[str, Any]:
    """Returns the config.json of diffusers' UNet2DConditionModel."""
    down = [
        _ATTENDING if level in config.attention_levels else _PLAIN
        for level in range(len(config.channels))
    ]
    return {
        "_class_name": UNET_CLASS,
        **written_keys(_UNET_FIELDS, config),
        "out_channels": config.image_channels,
        "down_block_types": down,
        "up_block_types": [_UP[kind] for kind in reversed(down)],
        "attention_head_dim": config.heads,
        **_UNET_FIXED,
    }


def read_stage_config(folder: os.PathLike) -> AutoencoderConfig | TinyAutoencoderConfig:
    """Returns the sizes of a first stage's folder; raises as read_unet_config does."""
    values, where = _read(folder, (*_KINDS, _TINY))
    if values["_class_name"] == _TINY:
        return _read_tiny(values, where)
    kind = _KINDS[values["_class_name"]]
    check_fixed(_STAGE_FIXED | _KIND_FIXED[kind], values, where)
    # Some files give null for what they do not know.
    given = _without_null(values, "sample_size", "scaling_factor")
    fields = read_fields(_STAGE_FIELDS | _SCALE[kind], given, where)
    if kind == "vq":
        fields |= read_fields(_CODES, values, where)
        if values.get("vq_embed_dim") is not None:
            _check_equal(values, "vq_embed_dim", None, fields["latent_channels"], where)
    _check_equal(values, "out_channels", 3, fields["image_channels"], where)
    plain, attending = (down for down, _ in _STAGE_BLOCKS.values())
    default = [plain] * len(fields["channels"])
    levels = _attending(values, default, dict(_STAGE_BLOCKS.values()), attending, where)
    return _checked(AutoencoderConfig(kind=kind, **fields, attention_levels=levels), where)


def _read_tiny(values: Mapping[str, Any], where: str) -> TinyAutoencoderConfig:
    check_fixed(_TINY_FIXED, values, where)
    fields = read_fields(_TINY_FIELDS, values, where)
    _check_equal(values, "out_channels", 3, fields["image_channels"], where)
    widths = set()
    for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
        widths |= set(read_fields({key: (key, (64, 64, 64, 64))}, values, where)[key])
    if len(widths) != 1:
        raise ValueError(f"{where}: *_block_out_channels = {sorted(widths)}: must all be equal")
    return _checked(TinyAutoencoderConfig(**fields, width=widths.pop()), where)


def stage_config_json(config: AutoencoderConfig) -> dict[str, Any]:
    """Returns the config.json of diffusers' AutoencoderKL or VQModel."""
    kinds = [
        _STAGE_BLOCKS[level in config.attention_levels] for level in range(len(config.channels))
    ]
    of_kind = {"vq": {**written_keys(_CODES, config), "vq_embed_dim": None}, "kl": {}}[config.kind]
    return {
        "_class_name": {kind: name for name, kind in _KINDS.items()}[config.kind],
        **written_keys(_STAGE_FIELDS | _SCALE[config.kind], config),
        **of_kind,
        "out_channels": config.image_channels,
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
        **_STAGE_FIXED,
        **_KIND_FIXED[config.kind],
    }


def _read(folder: os.PathLike, kinds: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    path = os.path.join(folder, "config.json")
    values = read_object(path)
    kind = values.get("_class_name")
    if kind not in kinds:
        raise ValueError(f"{path!r}: _class_name = {shown(kind)}: must be {' or '.join(kinds)}")
    return values, path


def _without_null(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {k: value for k, value in values.items() if k not in keys or value is not None}


def check_fixed(fixed: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for the first key of `fixed` that has another value; it may be missing."""
    for key, allowed in fixed.items():
        if values.get(key, allowed) != allowed:
            raise ValueError(f"{where}: {key} = {shown(values[key])}: must be {allowed!r}")


def _check_equal(
    values: Mapping[str, Any], key: str, default: Any, expected: int, where: str
) -> None:
    if values.get(key, default) != expected:
        raise ValueError(f"{where}: {key} = {shown(values.get(key, default))}: must be {expected}")


def _attending(
    values: Mapping[str, Any],
    default: list[str],
    names: Mapping[str, str],
    attending: str,
    where: str,
) -> tuple[int, ...]:
    """Returns the levels whose blocks are `attending`.

    default: kinds of the blocks on the way down where the file does not say. names: of the same
    kinds on the way up, by their names on the way down.
    """
    down = values.get("down_block_types", default)
    # `in` of a list: anything may stand there, also what cannot be hashed.
    known = list(names)
    if not isinstance(down, list) or len(down) != len(default) or any(k not in known for k in down):
        raise ValueError(
            f"{where}: down_block_types = {shown(down)}: must be {len(default)} of "
            f"{', '.join(known)}"
        )
    up = values.get("up_block_types", [names[kind] for kind in reversed(default)])
    mirrored = [names[kind] for kind in reversed(down)]
    if up != mirrored:
        raise ValueError(f"{where}: up_block_types = {shown(up)}: must be {shown(mirrored)}")
    return tuple(level for level, kind in enumerate(down) if kind == attending)


def _checked(config: Any, where: str) -> Any:
    check_limits(config, where)
    config.validate(where)
    return config

"""Loading control branches: folders of diffusers' ControlNetModel, files of CompVis.

Names and sizes are those of the U-Net's encoder, with the hint's convolutions and the zero
convolutions beside them. Prompt Diffusion's branches are read too: their convolutions of the query
are the hint's, those of their pair of example pictures have no place here and are left out.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.encoders.compvis_names import below, unet_to_diffusers
from contextdiff_jax.encoders.diffusers_configs import check_fixed, read_unet_config
from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.encoders.latent_weights import STEM
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import to_params
from contextdiff_jax.encoders.tensor_files import (
    VARIANTS,
    Tensor,
    content_hash,
    open_file,
    open_folder,
)
from contextdiff_jax.networks.controlnet import HINT_CHANNELS, ControlNet
from contextdiff_jax.networks.latent_config import LatentUNetConfig
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.scalars import read_scalar, shown

_KIND = "ControlNetModel"
_PROMPT_DIFFUSION = "PromptDiffusionControlNetModel"
_HINT_KEY = "conditioning_embedding_out_channels"
_FIXED = {
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
    "projection_class_embeddings_input_dim": None,
}
_MOST_STEPS = 8  # that halve a hint; published branches have three

CONTROL = "control_model."
_ZERO = re.compile(r"zero_convs\.(?P<number>\d{1,4})\.0\.(?P<leaf>.+)")
_PAIR, _QUERY = "input_hint_block.", "input_cond_block."  # of Prompt Diffusion; 6 and 3 channels
_PAIR_DIFFUSERS = "controlnet_cond_embedding."
_QUERY_DIFFUSERS = "controlnet_query_cond_embedding."
_HINT = re.compile(r"input_hint_block\.(?P<number>\d{1,4})\.(?P<leaf>.+)")


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """Sizes of a branch: of the U-Net that it is for, and of its hint's convolutions."""

    unet: LatentUNetConfig
    hint_channels: tuple[int, ...] = HINT_CHANNELS

    def module(self, dtype: Any = jnp.float32) -> ControlNet:
        """Returns the network; dtype: compute dtype."""
        return ControlNet(self.unet, dtype, hint_channels=self.hint_channels)

    @property
    def reduction(self) -> int:
        """Factor between the resolutions of the hint and of the latents."""
        return 2 ** (len(self.hint_channels) - 1)


def read_controlnet(path: str | pathlib.Path, unet: LatentUNetConfig) -> ControlNetConfig:
    """Returns the sizes of a branch: of a folder's config.json, or of the shapes in a file.

    unet: sizes of the U-Net that it is for; a file does not say them. Raises as load_unet does.
    """
    path = _local(path)
    if path.is_dir():
        return read_controlnet_config(path)
    return ControlNetConfig(unet, _hint_channels(_of_file(path), f"{str(path)!r}"))


def load_controlnet(
    path: str | pathlib.Path, config: ControlNetConfig, dtype: Any = np.float32
) -> dict[str, Any]:
    """Returns the parameters of a branch, for `config.module()`.

    path: folder of diffusers' ControlNetModel, or one of ControlNet's own files as safetensors,
    with names below control_model. or without it. Raises as load_unet does.
    """
    path = _local(path)
    if path.is_dir():
        tensors = open_folder(path, STEM, VARIANTS)
        tensors = _of_query(tensors, _PAIR_DIFFUSERS, _QUERY_DIFFUSERS, f"{str(path)!r}")
    else:
        tensors = _to_diffusers(_of_file(path), config)
    return controlnet_params(config, tensors, f"{str(path)!r}", dtype)


def _of_query(
    tensors: Mapping[str, Tensor], pair: str, query: str, where: str
) -> dict[str, Tensor]:
    """Returns the tensors; of Prompt Diffusion with those of the query for those of the hint."""
    own = below(query, tensors)
    if not own:
        return dict(tensors)
    logging.warning(
        "%s is a branch of Prompt Diffusion: its convolutions of a pair of pictures, %s*, are left "
        "out",
        *(where, pair),
    )
    kept = {name: each for name, each in tensors.items() if not name.startswith((pair, query))}
    return kept | {pair + name: each for name, each in own.items()}


def controlnet_identity(path: str | pathlib.Path) -> str:
    """Returns a short identity of a branch's weights, as folder_identity of weights.py."""
    path = _local(path)
    tensors = open_folder(path, STEM, VARIANTS) if path.is_dir() else open_file(path)
    return f"sha256:{content_hash(tensors)}"


def _local(path: str | pathlib.Path) -> pathlib.Path:
    path = epath.Path(path)
    found = local_folder(path if path.is_dir() else path.parent)
    return found if path.is_dir() else found / path.name


def _of_file(path: pathlib.Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights {str(path)!r} do not exist")
    tensors = open_file(path)
    return _of_query(below(CONTROL, tensors) or tensors, _PAIR, _QUERY, f"{str(path)!r}")


def _hint_channels(tensors: Mapping[str, Tensor], where: str) -> tuple[int, ...]:
    """Returns the channels of the hint's convolutions, of every second one's shape."""
    found: list[int] = []
    while (name := f"input_hint_block.{4 * len(found)}.weight") in tensors:
        found.append(tensors[name].shape[0] if tensors[name].shape else 0)
    if not 1 <= len(found) <= _MOST_STEPS:
        raise ValueError(
            f"{where} holds no control branch: it has no input_hint_block.0.weight, below "
            f"{CONTROL} or without it"
        )
    return tuple(found)


def controlnet_params(
    config: ControlNetConfig, tensors: Mapping[str, Tensor], where: str, dtype: Any = np.float32
) -> dict[str, Any]:
    """Returns the parameters of tensors with diffusers' names; raises ValueError as load_unet."""
    abstract = abstract_controlnet(config)
    table = unet_table(abstract, len(config.unet.channels))
    return to_params(table, abstract, tensors, lambda _: False, where, dtype)


def read_controlnet_config(folder: os.PathLike) -> ControlNetConfig:
    """Returns the sizes of a branch's folder; raises as read_unet_config does."""
    unet = read_unet_config(folder, (_KIND, _PROMPT_DIFFUSION))
    where = os.path.join(folder, "config.json")
    values = read_object(where)
    of_pair = values.get("_class_name") == _PROMPT_DIFFUSION
    check_fixed(_FIXED | {"conditioning_channels": 6 if of_pair else 3}, values, where)
    channels = values.get(_HINT_KEY, list(HINT_CHANNELS))
    if not isinstance(channels, list) or not 1 <= len(channels) <= _MOST_STEPS:
        raise ValueError(
            f"{where}: {_HINT_KEY} = {shown(channels)}: must be a list of 1 to {_MOST_STEPS} "
            "integers"
        )
    channels = tuple(read_scalar(int, each, f"{where}: {_HINT_KEY}") for each in channels)
    if not all(1 <= each <= 2**14 for each in channels):
        raise ValueError(f"{where}: {_HINT_KEY} = {channels}: must be in 1..{2**14}")
    return ControlNetConfig(unet, channels)


@functools.lru_cache(maxsize=8)
def abstract_controlnet(config: ControlNetConfig) -> Any:
    """Returns the shapes of a branch's parameters, boxed with their logical axis names."""
    side = config.unet.reduction
    latents = jnp.zeros((1, side, side, config.unet.image_channels))
    context = jnp.zeros((1, 1, config.unet.context_dim))
    hint = jnp.zeros((1, side * config.reduction, side * config.reduction, 3))
    inputs = (jax.random.key(0), latents, jnp.ones(1), context, hint)
    return jax.eval_shape(config.module().init, *inputs)["params"]


def _to_diffusers(tensors: Mapping[str, Tensor], config: ControlNetConfig) -> dict[str, Tensor]:
    """Returns the tensors of ControlNet's own file (names below control_model.) renamed."""
    last = 2 * (len(config.hint_channels) - 1) + 1  # of the hint's convolutions
    own, others = {}, {}
    for name, tensor in tensors.items():
        if zero := _ZERO.fullmatch(name):
            own[f"controlnet_down_blocks.{zero['number']}.{zero['leaf']}"] = tensor
        elif name.startswith("middle_block_out.0."):
            leaf = name.removeprefix("middle_block_out.0.")
            own[f"controlnet_mid_block.{leaf}"] = tensor
        elif (hint := _HINT.fullmatch(name)) and int(hint["number"]) % 2 == 0:
            number = int(hint["number"]) // 2  # an activation lies between every two
            part = {0: "conv_in", last: "conv_out"}.get(number, f"blocks.{number - 1}")
            own[f"controlnet_cond_embedding.{part}.{hint['leaf']}"] = tensor
        else:
            others[name] = tensor
    return own | unet_to_diffusers(others, config.unet.num_blocks)

"""Weights of a U-Net of clips: a 2-D folder whose temporal parts begin anew, or a tuned one.

Tune-A-Video, FateZero and ControlVideo write unet/ as diffusers does, with the temporal parts
beside the 2-D ones; their names for these differ, and are all read.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import traverse_util

from contextdiff_jax.encoders.diffusers_configs import (
    OF_CLIPS,
    UNET_CLASS,
    read_unet_config,
    unet_config_json,
)
from contextdiff_jax.encoders.diffusers_names import squeezed, unet_table
from contextdiff_jax.encoders.latent_weights import STEM, abstract_unet, init_unet
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry, from_params, to_params
from contextdiff_jax.encoders.tensor_files import (
    VARIANTS,
    Tensor,
    listed,
    open_folder,
    write_folder,
)
from contextdiff_jax.networks.latent_config import LatentUNetConfig
from contextdiff_jax.networks.video_config import VideoConfig

_PART = re.compile(r"attn_temp|norm_temp|conv_temporal|conv_temp\b")
_FATEZERO = re.compile(r"\b(attn|norm)_temporal\b")


def load_video_unet(
    folder: str | pathlib.Path, video: VideoConfig, seed: int = 0
) -> tuple[LatentUNetConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a U-Net's folder, for `LatentUNet(config, video=video)`.

    Temporal parts that the folder has none of are drawn with `seed`.

    Raises FileNotFoundError and ValueError as latent_weights.load_unet does, the latter too where
    the folder has some tensors of a temporal part but not all.
    """
    folder = local_folder(folder)
    config = read_unet_config(folder, (UNET_CLASS, *OF_CLIPS))
    tensors = open_folder(folder, STEM, VARIANTS)
    return config, video_unet_params(config, video, tensors, f"{str(folder)!r}", seed)


def video_unet_params(
    config: LatentUNetConfig,
    video: VideoConfig,
    tensors: Mapping[str, Tensor],
    where: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the parameters of tensors with the originals' names; raises as load_video_unet."""
    tensors = _as_tune_a_video(tensors)
    abstract = traverse_util.flatten_dict(nn.unbox(abstract_unet(config, video)), sep="/")
    table = unet_table(abstract_unet(config, video), len(config.channels))
    fresh = _fresh(table, tensors, where)
    found = [entry for entry in table if entry.path not in fresh]
    known = {entry.path: abstract[entry.path] for entry in found}
    loaded = to_params(found, _nested(known), tensors, lambda _: False, where)
    if not fresh:
        return loaded
    flat = traverse_util.flatten_dict(loaded, sep="/")
    return _nested(flat | init_unet(config, video, seed, sorted(fresh)))


def fresh_parts(params: Any, config: LatentUNetConfig, video: VideoConfig, seed: int = 0) -> Any:
    """Returns the parameters of the 2-D network with temporal parts drawn beside them.

    Temporal attention beside self-attention begins as a copy of that (ControlVideo).
    """
    own = traverse_util.flatten_dict(params, sep="/")
    inflated = traverse_util.flatten_dict(nn.unbox(abstract_unet(config, video)), sep="/")
    drawn = init_unet(config, video, seed, sorted(set(inflated) - set(own)))
    if video.temporal == "parallel":
        of_self = {name: own.get(name.replace("/temporal/", "/self/")) for name in drawn}
        drawn |= {name: leaf for name, leaf in of_self.items() if leaf is not None}
    return _nested(own | drawn)


def save_video_unet_folder(
    folder: str | pathlib.Path, config: LatentUNetConfig, video: VideoConfig, params: Any
) -> None:
    """Writes config.json and weights (float32) under Tune-A-Video's names, for load_video_unet.

    Raises ValueError where `params` do not fit.
    """
    abstract = abstract_unet(config, video)
    tensors = from_params(unet_table(abstract, len(config.channels)), abstract, params)
    description = unet_config_json(config) | {"_class_name": OF_CLIPS[0]}
    write_folder(folder, description, tensors, STEM)


def _fresh(table: list[Entry], tensors: Mapping[str, Tensor], where: str) -> set[str]:
    """Returns the parameters of temporal parts that no tensor is there for, by path."""
    parts: dict[str, list[Entry]] = {}
    for entry in table:
        if found := _PART.search(entry.name):
            kind = "convolutions" if found[0] == "conv_temporal" else "attention"
            parts.setdefault(kind, []).append(entry)
    fresh = set()
    for kind, entries in parts.items():
        missing = [entry.name for entry in entries if not _is_there(entry, tensors)]
        if len(missing) == len(entries):
            fresh |= {entry.path for entry in entries}
        elif missing:
            raise ValueError(
                f"tensors of {where} do not fit the model; of the temporal {kind} "
                f"{len(missing)} of {len(entries)} are missing: {listed(missing)}"
            )
    return fresh


def _is_there(entry: Entry, tensors: Mapping[str, Tensor]) -> bool:
    return entry.name.format(i=entry.first) in tensors


def _as_tune_a_video(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under Tune-A-Video's names; 1x1 convolutions over time as matrices."""
    renamed = {}
    for name, tensor in tensors.items():
        name = _FATEZERO.sub(r"\1_temp", name)
        renamed[name] = squeezed(tensor) if ".conv_temp." in name else tensor
    return renamed


def _nested(flat: Mapping[str, Any]) -> Any:
    return traverse_util.unflatten_dict(dict(flat), sep="/")

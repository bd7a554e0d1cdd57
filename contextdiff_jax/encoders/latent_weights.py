"""Loading and saving latent U-Nets and first stages: diffusers' folders, and tiny ones' two files.

A folder is the unet/ or vae/ of a published pipeline: config.json with
diffusion_pytorch_model.safetensors, its fp16 variant, or shards and their index. Parameters are
float32 whatever the files hold, unless another dtype is asked for.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from contextdiff_jax.encoders.diffusers_configs import (
    read_stage_config,
    read_unet_config,
    stage_config_json,
    unet_config_json,
)
from contextdiff_jax.encoders.diffusers_names import (
    tiny_table,
    unet_table,
    with_numbered_layers,
    with_todays_attention,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry, from_params, to_params
from contextdiff_jax.encoders.tensor_files import (
    VARIANTS,
    Tensor,
    content_hash,
    open_file,
    open_folder,
    write_folder,
)
from contextdiff_jax.networks.autoencoder import Autoencoder
from contextdiff_jax.networks.latent_config import (
    AutoencoderConfig,
    FirstStageConfig,
    LatentUNetConfig,
    TinyAutoencoderConfig,
)
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.tiny_autoencoder import TinyAutoencoder, encoder_layers
from contextdiff_jax.networks.video_config import VideoConfig

STEM = "diffusion_pytorch_model"

FirstStage = Autoencoder | TinyAutoencoder


def load_unet(
    folder: str | pathlib.Path, dtype: Any = np.float32
) -> tuple[LatentUNetConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a U-Net's folder, for `LatentUNet(config)`.

    Args:
      folder: unet/ of a published pipeline.
      dtype: of the parameters returned, numpy arrays.

    Raises:
      FileNotFoundError: the folder or a file of it is missing.
      ValueError: it is no such U-Net, its weights are a pickle, or tensors are missing,
        unexpected, of another shape or not finite.
    """
    folder = local_folder(folder)
    config = read_unet_config(folder)
    tensors = open_folder(folder, STEM, VARIANTS)
    return config, unet_params(config, tensors, f"{str(folder)!r}", dtype)


def unet_identity(folder: str | pathlib.Path) -> str:
    """Returns a short identity of a U-Net folder's weights, as folder_identity of weights.py."""
    return f"sha256:{content_hash(open_folder(local_folder(folder), STEM, VARIANTS))}"


def unet_params(
    config: LatentUNetConfig, tensors: Mapping[str, Tensor], where: str, dtype: Any = np.float32
) -> dict[str, Any]:
    """Returns the parameters of tensors with diffusers' names; raises ValueError as load_unet."""
    abstract = abstract_unet(config)
    table = unet_table(abstract, len(config.channels))
    return to_params(table, abstract, tensors, lambda _: False, where, dtype)


def load_first_stage(
    folder: str | pathlib.Path, dtype: Any = np.float32
) -> tuple[FirstStageConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a first stage, for `first_stage(config)`.

    Reads AutoencoderKL, VQModel and AutoencoderTiny as diffusers writes them, and folders without
    config.json that hold the two original files of a tiny one, *_encoder.safetensors and
    *_decoder.safetensors. Arguments and errors are those of load_unet.
    """
    folder = local_folder(folder)
    where = f"{str(folder)!r}"
    tensors, described = _stage_tensors(folder)
    config = read_stage_config(folder) if described else _tiny_config(tensors, where)
    return config, first_stage_params(config, tensors, where, dtype)


def first_stage_sizes(folder: str | pathlib.Path) -> FirstStageConfig:
    """Returns the sizes of a first stage's folder, without reading weights; raises likewise."""
    folder = local_folder(folder)
    pair = _tiny_files(folder)
    if pair is None:
        return read_stage_config(folder)
    return _tiny_config(with_numbered_layers(*map(open_file, pair)), f"{str(folder)!r}")


def first_stage_identity(folder: str | pathlib.Path) -> str:
    """Returns a short identity of a first stage's weights, as folder_identity of weights.py."""
    return f"sha256:{content_hash(_stage_tensors(local_folder(folder))[0])}"


def _stage_tensors(folder: pathlib.Path) -> tuple[dict[str, Tensor], bool]:
    """Returns the tensors of a first stage's folder, and whether a config.json describes it."""
    pair = _tiny_files(folder)
    if pair is None:
        return open_folder(folder, STEM, VARIANTS), True
    return with_numbered_layers(*map(open_file, pair)), False


def first_stage_params(
    config: FirstStageConfig, tensors: Mapping[str, Tensor], where: str, dtype: Any = np.float32
) -> dict[str, Any]:
    """Returns the parameters of tensors with diffusers' names; raises ValueError as load_unet."""
    abstract = abstract_first_stage(config)
    if isinstance(config, AutoencoderConfig):
        tensors = with_todays_attention(tensors)
    table = _stage_table(config, abstract)
    return to_params(table, abstract, tensors, lambda _: False, where, dtype)


def save_unet_folder(folder: str | pathlib.Path, config: LatentUNetConfig, params: Any) -> None:
    """Writes config.json and weights (float32), as diffusers' UNet2DConditionModel reads them.

    `params` are those of `LatentUNet(config)`, boxed or not. Each file appears whole or not at
    all. Raises ValueError where `params` do not fit `config`.
    """
    abstract = abstract_unet(config)
    tensors = from_params(unet_table(abstract, len(config.channels)), abstract, params)
    write_folder(folder, unet_config_json(config), tensors, STEM)


def save_first_stage_folder(
    folder: str | pathlib.Path, config: AutoencoderConfig, params: Any
) -> None:
    """Writes config.json and weights (float32), as diffusers' AutoencoderKL or VQModel reads them.

    Raises as save_unet_folder does.
    """
    abstract = abstract_first_stage(config)
    tensors = from_params(_stage_table(config, abstract), abstract, params)
    write_folder(folder, stage_config_json(config), tensors, STEM)


def first_stage(config: FirstStageConfig, dtype: Any = jnp.float32) -> FirstStage:
    """Returns the module of a config; dtype: compute dtype."""
    kind = Autoencoder if isinstance(config, AutoencoderConfig) else TinyAutoencoder
    return kind(config, dtype)


@functools.lru_cache(maxsize=8)
def abstract_unet(config: LatentUNetConfig, video: VideoConfig | None = None) -> Any:
    """Returns the shapes of a U-Net's parameters, boxed with their logical axis names."""
    return jax.eval_shape(_unet_init(config, video), jax.random.key(0))["params"]


def init_unet(
    config: LatentUNetConfig, video: VideoConfig | None, seed: int, names: Collection[str]
) -> dict[str, np.ndarray]:
    """Returns fresh parameters of a U-Net, those of these names alone: "middle_attn/norm/scale"."""
    init = _unet_init(config, video)

    def drawn(key: jax.Array) -> dict[str, jax.Array]:
        flat = traverse_util.flatten_dict(nn.unbox(init(key))["params"], sep="/")
        return {name: flat[name] for name in names}  # the others are not even computed

    return jax.tree.map(np.asarray, jax.jit(drawn)(jax.random.key(seed)))


def _unet_init(config: LatentUNetConfig, video: VideoConfig | None) -> Any:
    """Returns init(key) of a U-Net. How many frames clips have changes no parameter."""
    video = None if video is None else dataclasses.replace(video, frames=1)
    side = config.reduction
    latents = jnp.zeros((1, side, side, config.image_channels))
    context = jnp.zeros((1, 1, config.context_dim))
    module = LatentUNet(config, video=video)
    return lambda key: module.init(key, latents, jnp.ones(1), context)


@functools.lru_cache(maxsize=8)
def abstract_first_stage(config: FirstStageConfig) -> Any:
    """Returns the shapes of a first stage's parameters, boxed with their logical axis names."""
    images = jnp.zeros((1, config.reduction, config.reduction, config.image_channels))
    return jax.eval_shape(first_stage(config).init, jax.random.key(0), images)["params"]


def _stage_table(config: FirstStageConfig, abstract: Any) -> list[Entry]:
    if isinstance(config, AutoencoderConfig):
        return unet_table(abstract, len(config.channels))
    return tiny_table(abstract)


def _tiny_files(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path] | None:
    """Returns the original files of a tiny autoencoder, or None where the folder is diffusers'."""
    if (folder / "config.json").exists() or not folder.is_dir():
        return None
    found = []
    for half in ("encoder", "decoder"):
        paths = sorted(folder.glob(f"*{half}.*"))
        if len(paths) != 1:
            names = ", ".join(path.name for path in paths) or "none"
            raise FileNotFoundError(
                f"folder {str(folder)!r} has no config.json, and {names} of "
                f"*{half}.safetensors: must have one"
            )
        found += paths
    return found[0], found[1]


def _tiny_config(tensors: Mapping[str, Tensor], where: str) -> TinyAutoencoderConfig:
    """Returns the sizes of the original files, which have the published depth."""
    pooled = any(".pool." in name for name in tensors)
    published = TinyAutoencoderConfig(pooled=pooled)
    last = f"encoder.layers.{len(encoder_layers(published)) - 1}.weight"
    shape = tensors[last].shape if last in tensors else ()
    if len(shape) != 4 or not 1 <= shape[0] <= 1024 or not 1 <= shape[1] <= 1024:
        raise ValueError(
            f"{last} of {where} is {shape or 'missing'}, must be (latents, width, 3, 3)"
        )
    return TinyAutoencoderConfig(latent_channels=shape[0], width=shape[1], pooled=pooled)

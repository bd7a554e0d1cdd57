"""Loading latent diffusion from the single files of CompVis and of those who trained on from them.

A file holds everything: the U-Net below model.diffusion_model., optionally its moving average below
model_ema., the first stage below first_stage_model., the condition's encoder below
cond_stage_model., of ControlNet the branch below control_model.; what describes the noise schedule
is not needed. Sizes are not in it: published ones are recognised by their shapes, others are to be
given.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.encoders.compvis_names import (
    CLASS_EMBEDDING,
    CLIP_TEXT,
    OPEN_CLIP_TEXT,
    STAGE,
    UNET,
    averaged,
    below,
    levels_of,
    stage_to_diffusers,
    unet_to_diffusers,
)
from contextdiff_jax.encoders.config import (
    STABLE_DIFFUSION_1_TEXT,
    STABLE_DIFFUSION_2_TEXT,
    CLIPTextConfig,
)
from contextdiff_jax.encoders.controlnet_weights import CONTROL, load_controlnet, read_controlnet
from contextdiff_jax.encoders.latent_weights import first_stage_params, unet_params
from contextdiff_jax.encoders.layout_weights import (
    holds_layout_transformer,
    load_layout_transformer,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import check_fit
from contextdiff_jax.encoders.openai_names import to_hugging_face
from contextdiff_jax.encoders.tensor_files import (
    FLOATS,
    Tensor,
    content_hash,
    open_file,
    read_floats,
)
from contextdiff_jax.encoders.weights import clip_text_params
from contextdiff_jax.networks.latent_config import (
    AutoencoderConfig,
    LatentUNetConfig,
    kl_f8,
    ldm_imagenet,
    ldm_layout,
    stable_diffusion_1,
    stable_diffusion_2,
    vq_f4,
    vq_f8,
)

_UNETS = (stable_diffusion_1, stable_diffusion_2, ldm_imagenet, ldm_layout)
_STAGES = (kl_f8, vq_f4, vq_f8)
_CONV_IN = "input_blocks.0.0.weight"
_CODEBOOK = "quantize.embedding.weight"
_MOMENTS = "quant_conv.weight"


def single_file_in(folder: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the single file of a folder: its only *.safetensors, with CompVis' names.

    None where config.json describes another kind of folder, or there is no such file.
    """
    folder = pathlib.Path(folder)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if len(files) != 1 or (folder / "config.json").exists():
        return None
    return files[0] if any(name.startswith((UNET, STAGE)) for name in open_file(files[0])) else None


def single_file_stage_sizes(path: str | pathlib.Path) -> AutoencoderConfig:
    """Returns the published sizes that a file's first stage is of; raises as its loader."""
    tensors, where = _open(path)
    return _recognised_stage(below(STAGE, tensors) or tensors, where)


def single_file_stage_identity(path: str | pathlib.Path) -> str:
    """Returns a short identity of a file's first stage, as folder_identity of weights.py."""
    tensors, _ = _open(path)
    return f"sha256:{content_hash(below(STAGE, tensors) or tensors)}"


def single_file_weights(path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the U-Net of a file, as a run's "denoiser", and the conditioner it learned with it.

    A class embedding is the table of the condition "label", whose last row is no class; a
    transformer over layouts is the tokens of the condition "layout". A control branch is the
    denoiser's "control". The sizes must be published ones. Raises as load_single_file_unet does.
    """
    config, weights = load_single_file_unet(path)
    tensors, _ = _open(path)
    if any(name.startswith(CONTROL) for name in tensors):
        weights["control"] = load_controlnet(path, read_controlnet(path, config))
    if holds_layout_transformer(tensors):
        layout = load_layout_transformer(tensors, f"{str(path)!r}")
        return {"denoiser": weights, "conditions": {"layout": {"denoiser": {"tokens": layout}}}}
    if CLASS_EMBEDDING not in tensors:
        return {"denoiser": weights}
    rows = tensors[CLASS_EMBEDDING].shape[0]
    table = load_class_embedding(path, config.context_dim, rows - 1)
    return {"denoiser": weights, "conditions": {"label": {"denoiser": {"table": table}}}}


def load_single_file_unet(
    path: str | pathlib.Path,
    config: LatentUNetConfig | None = None,
    average: bool = False,
    dtype: Any = np.float32,
) -> tuple[LatentUNetConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a file's U-Net, for `LatentUNet(config)`.

    Args:
      path: safetensors file.
      config: its sizes; None takes the published ones that its shapes are of.
      average: whether to take the moving average of the weights; the file must hold it.
      dtype: of the parameters returned, numpy arrays.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is a pickle (the sentence says how to convert it) or no such file, or tensors
        are missing, unexpected, of another shape or not finite. Names are diffusers'.
    """
    tensors, where = _open(path)
    found = averaged(tensors) if average else below(UNET, tensors)
    if not found:
        what = "moving average, names below model_ema." if average else f"names below {UNET}"
        raise ValueError(f"{where} holds no U-Net: it has no {what}")
    if config is None:
        config = _recognised_unet(found, where)
    renamed = unet_to_diffusers(found, config.num_blocks)
    return config, unet_params(config, renamed, where, dtype)


def load_single_file_stage(
    path: str | pathlib.Path, config: AutoencoderConfig | None = None, dtype: Any = np.float32
) -> tuple[AutoencoderConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a file's first stage, for `Autoencoder(config)`.

    Reads files of a first stage alone too, whose names have no prefix. What its training needed
    beside, below loss., is left out. Arguments and errors are those of load_single_file_unet.
    """
    tensors, where = _open(path)
    found = below(STAGE, tensors) or dict(tensors)
    found = {name: tensor for name, tensor in found.items() if not name.startswith("loss.")}
    levels = levels_of(found)
    if not levels:
        raise ValueError(
            f"{where} holds no first stage: it has no names below {STAGE}encoder.down."
        )
    if config is None:
        config = _recognised_stage(found, where)
    return config, first_stage_params(config, stage_to_diffusers(found, levels), where, dtype)


def load_single_file_text(
    path: str | pathlib.Path, config: CLIPTextConfig | None = None, dtype: Any = np.float32
) -> tuple[CLIPTextConfig, dict[str, Any]]:
    """Returns the sizes and parameters of a file's text encoder, for `TextTower(config)`.

    Stable Diffusion 1.x has CLIP's, 2.x OpenCLIP's, of which blocks beyond config.layers are left
    out: it was trained on what the last but one gives. The tokenizer is not in the file. Arguments
    and errors are those of load_single_file_unet.
    """
    tensors, where = _open(path)
    first, second = (below(prefix, tensors) for prefix in (CLIP_TEXT, OPEN_CLIP_TEXT))
    if not first and not second:
        raise ValueError(
            f"{where} holds no text encoder: it has no names below {CLIP_TEXT} or {OPEN_CLIP_TEXT}"
        )
    if config is None:
        config = STABLE_DIFFUSION_1_TEXT if first else STABLE_DIFFUSION_2_TEXT
    if not first:
        first = _without_last_blocks(to_hugging_face(second), config.layers)
    return config, clip_text_params(config, first, where, dtype)


def _without_last_blocks(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    numbers = {
        name: re.match(r"text_model\.encoder\.layers\.(\d{1,4})\.", name) for name in tensors
    }
    return {
        name: tensors[name]
        for name, found in numbers.items()
        if found is None or int(found[1]) < layers
    }


def load_class_embedding(path: str | pathlib.Path, width: int, classes: int) -> np.ndarray:
    """Returns the table (classes + 1, width) float32 of a class-conditional file.

    The last row is the null condition. The network's context is one row, (B, 1, width). Raises as
    load_single_file_unet does.
    """
    tensors, where = _open(path)
    found = {name: tensors[name].shape for name in (CLASS_EMBEDDING,) if name in tensors}
    check_fit({CLASS_EMBEDDING: (classes + 1, width)}, found, where)
    table = tensors[CLASS_EMBEDDING]
    if table.dtype not in FLOATS:
        raise ValueError(
            f"{CLASS_EMBEDDING} of {where} is {table.dtype}, must be one of {', '.join(FLOATS)}"
        )
    return read_floats(CLASS_EMBEDDING, table, where).astype(np.float32)


def _open(path: str | pathlib.Path) -> tuple[dict[str, Tensor], str]:
    path = local_folder(epath.Path(path).parent) / epath.Path(path).name
    if not path.is_file():
        raise FileNotFoundError(f"weights {str(path)!r} do not exist")
    return open_file(path), f"{str(path)!r}"


def _recognised_unet(tensors: Mapping[str, Tensor], where: str) -> LatentUNetConfig:
    shape = tensors[_CONV_IN].shape if _CONV_IN in tensors else ()
    contexts = {t.shape[-1:] for name, t in tensors.items() if name.endswith("attn2.to_k.weight")}
    linear = {len(t.shape) == 2 for name, t in tensors.items() if name.endswith("proj_in.weight")}
    for preset in _UNETS:
        config = preset()
        expected = (config.channels[0], config.image_channels, 3, 3)
        if (shape, contexts, linear) == (
            expected,
            {(config.context_dim,)},
            {config.linear_projection},
        ):
            return config
    known = ", ".join(preset.__name__ for preset in _UNETS)
    raise ValueError(
        f"the U-Net of {where} is of no published size ({known}): its config must be given"
    )


def _recognised_stage(tensors: Mapping[str, Tensor], where: str) -> AutoencoderConfig:
    codes = tensors[_CODEBOOK].shape if _CODEBOOK in tensors else None
    moments = tensors[_MOMENTS].shape[:1] if _MOMENTS in tensors else ()
    for preset in _STAGES:
        config = preset()
        channels = config.latent_channels
        expected = (config.codes, channels) if config.kind == "vq" else None
        if codes == expected and moments == (channels if expected else 2 * channels,):
            return config
    known = ", ".join(preset.__name__ for preset in _STAGES)
    raise ValueError(
        f"the first stage of {where} is of no published size ({known}): its config must be given"
    )

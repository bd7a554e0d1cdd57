"""Low-rank updates of a latent U-Net as diffusers' pytorch_lora_weights.safetensors, both ways.

Written are the names of today; read are those of older versions too. What an update counts is in
its second matrix, so that a file needs no word about it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util
from safetensors.numpy import save_file

from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.encoders.latent_weights import abstract_unet
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.name_map import Entry
from contextdiff_jax.encoders.tensor_files import (
    Tensor,
    file_metadata,
    listed,
    open_file,
    read_floats,
)
from contextdiff_jax.networks.latent_config import LatentUNetConfig
from contextdiff_jax.system.atomic_write import written_whole

FILE = "pytorch_lora_weights.safetensors"

_PREFIX = "unet."
_KERNEL = "/kernel"
# to_q.lora_A.weight; before peft to_q.lora.down.weight; before that processor.to_q_lora.down.weight
_PART = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<matrix>[AB])\.weight|[._]lora\.(?P<old>down|up)\.weight"
    r"|\.(?P<alpha>alpha))"
)
_OLD = {"down": "A", "up": "B"}
_SETTINGS = "lora_adapter_metadata"


def save_lora(file: epath.PathLike, config: LatentUNetConfig, updates: Any, scale: float) -> None:
    """Writes the updates of `LatentUNet(config)`, as networks.lora has them; float32, whole."""
    flat = traverse_util.flatten_dict(updates, sep="/")
    tensors = {}
    for path, module, index in _modules(config):
        if f"{path}/down" not in flat:
            continue
        down, up = (np.asarray(flat[f"{path}/{part}"], np.float32) for part in ("down", "up"))
        down, up = (down, up) if index is None else (down[index], up[index])
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(down.T)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(scale * up.T)
    path = epath.Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        save_file(tensors, str(unfinished), metadata={"format": "pt"})


def load_lora(file: epath.PathLike, config: LatentUNetConfig) -> Any:
    """Returns the updates of a file for `LatentUNet(config)`, float32, to be counted once.

    config: without scan_blocks. Raises ValueError, naming tensors, where the file holds updates of
    what is no matrix of the U-Net, of another shape, half of one, or values that are not finite.
    """
    path = epath.Path(file)
    path = local_folder(path.parent) / path.name
    tensors, where = open_file(path), repr(str(path))
    parts = _parts(tensors, where)
    known = {module: path for path, module, _ in _modules(config)}
    unknown = sorted(set(parts) - set(known))
    if unknown or not parts:
        raise ValueError(
            f"{where} has updates of {listed(unknown)}, which are no matrices of this U-Net"
            if unknown
            else f"{where} has no updates of a U-Net, whose names begin with {_PREFIX!r}"
        )
    scale, kernels = _scale(path, where), traverse_util.flatten_dict(abstract_unet(config), sep="/")
    updates = {}
    for module, found in parts.items():
        shape = kernels[known[module] + _KERNEL].unbox().shape
        down, up = _matrices(module, found, shape, where)
        factor = scale
        if "alpha" in found:
            alpha = read_floats(f"{module}.alpha", found["alpha"], where)
            if alpha.size != 1:
                raise ValueError(f"{where}: {module}.alpha is {alpha.shape}, must be one number")
            factor = float(alpha.item()) / len(down)
        updates[f"{known[module]}/down"] = np.ascontiguousarray(down.T)
        updates[f"{known[module]}/up"] = np.ascontiguousarray(np.float32(factor) * up.T)
    return traverse_util.unflatten_dict(updates, sep="/")


def _modules(config: LatentUNetConfig) -> Iterator[tuple[str, str, int | None]]:
    """Yields the path of each matrix's module, its name in diffusers, its place in a stack."""
    abstract = abstract_unet(config)
    shapes = traverse_util.flatten_dict(abstract, sep="/")
    for entry in unet_table(abstract, len(config.channels)):
        if not (entry.layout == "linear" and entry.path.endswith(_KERNEL)):
            continue
        path = entry.path.removesuffix(_KERNEL)
        for name, index in _names(entry, shapes[entry.path].unbox().shape):
            yield path, name.removesuffix(".weight"), index


def _names(entry: Entry, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None]]:
    if not entry.stacked:
        yield entry.name, None
        return
    for index in range(shape[0]):
        yield entry.name.format(i=entry.first + index), index


def _parts(tensors: Mapping[str, Tensor], where: str) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors "A", "B" and perhaps "alpha" of each module; names are today's."""
    parts: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        found = _PART.fullmatch(name.removeprefix(_PREFIX))
        if found is None or not name.startswith(_PREFIX):
            strange.append(name)
            continue
        module = found["module"].replace(".processor.", ".")
        module = re.sub(r"\.to_out$", ".to_out.0", module)
        part = found["matrix"] or found["alpha"] or _OLD[found["old"]]
        parts.setdefault(module, {})[part] = tensor
    if strange:
        raise ValueError(
            f"{where} has {listed(sorted(strange))}: must be low-rank updates of the U-Net alone, "
            f"whose names begin with {_PREFIX!r}"
        )
    return parts


def _matrices(
    module: str, found: Mapping[str, Tensor], shape: tuple[int, ...], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A (rank, in) and B (out, rank) float32 of a module with a kernel of `shape`."""
    missing = [part for part in "AB" if part not in found]
    if missing:
        raise ValueError(
            f"{where} lacks lora_{missing[0]} of {module}, the other half of an update"
        )
    shapes = found["A"].shape, found["B"].shape
    rank = shapes[0][:1]
    wanted = (*rank, shape[0]), (shape[1], *rank)
    if rank == (0,):
        raise ValueError(f"{where}: the update of {module} is of rank 0, must be at least 1")
    if shapes != wanted:
        raise ValueError(f"{where}: the update of {module} is {shapes}, must be {wanted}")
    down, up = (read_floats(f"{module}.lora_{part}", found[part], where) for part in "AB")
    return down.astype(np.float32), up.astype(np.float32)


def _scale(path: Any, where: str) -> float:
    """Returns what updates count, as the file's metadata say; 1 where they say nothing."""
    text = file_metadata(path).get(_SETTINGS)
    if text is None:
        return 1.0
    try:
        settings = json.loads(text)
        rank, alpha = (settings.get(f"{_PREFIX}{key}") for key in ("r", "lora_alpha"))
        varied = [settings.get(f"{_PREFIX}{key}_pattern") for key in ("rank", "alpha")]
        scale = 1.0 if rank is None or alpha is None else float(alpha) / float(rank)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{where}: its metadata {_SETTINGS} cannot be read: {error}") from error
    if not math.isfinite(scale):
        raise ValueError(
            f"{where}: its metadata {_SETTINGS} give alpha / rank = {scale}: must be finite"
        )
    if any(varied) or settings.get(f"{_PREFIX}use_rslora") or settings.get(f"{_PREFIX}use_dora"):
        raise ValueError(
            f"{where}: its metadata ask for updates of different rank or kind: must be plain ones"
        )
    return scale

"""Folders that weights are read from, and weights that a run does not train and so does not hold.

A run's checkpoints record such parameters (fixed) by their names, with a digest, under "start";
they are read from where they came whenever they are needed, and refused where they changed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from contextdiff_jax.encoders.controlnet_weights import load_controlnet, read_controlnet
from contextdiff_jax.encoders.diffusers_configs import UNET_CLASS
from contextdiff_jax.encoders.latent_weights import load_unet
from contextdiff_jax.encoders.single_file import single_file_in, single_file_weights
from contextdiff_jax.encoders.tensor_files import Tensor, content_hash
from contextdiff_jax.runs.build import RUN_PREFIX
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.training.checkpoints import (
    CheckpointError,
    holds_tree,
    load_tree,
    newest_ema,
)
from contextdiff_jax.training.parameter_names import by_name, merged, nested
from contextdiff_jax.training.task import Params

Named = Mapping[str, Any]  # arrays or shapes by the parameters' names


class Reader(NamedTuple):
    """A kind of folder that weights are read from.

    what: it in words. holds: whether a folder is of this kind, without reading weights. read:
    returns its parameters as nested dicts of host arrays, networks first ("denoiser", "adapter").
    """

    what: str
    holds: Callable[[epath.Path], bool]
    read: Callable[[epath.Path], Params]


def source_folder(path: str, workdir: epath.Path) -> epath.Path:
    """Returns the folder that a start_from.path names, for runs under `workdir`."""
    if path.startswith(RUN_PREFIX):
        return workdir / path.removeprefix(RUN_PREFIX)
    return epath.Path(path)


def whole_ema(folder: epath.Path) -> tuple[Params, dict[str, Any]]:
    """Returns a run's newest EMA weights, the fixed ones with them, and its metadata.

    folder: the run's, WORKDIR/RUN. Raises ValueError where there are none yet, CheckpointError
    where the fixed ones are not those it was trained with.
    """
    weights, metadata = newest_ema(folder / "checkpoints")
    return merged(weights, fixed_weights(metadata, folder)), metadata


def _is_run(folder: epath.Path) -> bool:
    return (folder / "checkpoints").is_dir()


def _is_unet(folder: epath.Path) -> bool:
    file = folder / "config.json"
    return file.is_file() and read_object(file).get("_class_name") == UNET_CLASS


def _unet_weights(folder: epath.Path) -> Params:
    return {"denoiser": load_unet(folder)[1]}


def _is_controlled(folder: epath.Path) -> bool:
    return all((folder / part / "config.json").is_file() for part in ("unet", "controlnet"))


def _controlled_weights(folder: epath.Path) -> Params:
    """Returns a U-Net with its branch, which is the denoiser's "control"."""
    sizes, unet = load_unet(folder / "unet")
    branch = folder / "controlnet"
    control = load_controlnet(branch, read_controlnet(branch, sizes))
    return {"denoiser": {**unet, "control": control}}


def _has_single_file(folder: epath.Path) -> bool:
    return single_file_in(folder) is not None


def _single_file_weights(folder: epath.Path) -> Params:
    return single_file_weights(single_file_in(folder))


# The first that fits is taken. Readers of published weights come here, too.
READERS = (
    Reader("the folder of a run, WORKDIR/RUN", _is_run, lambda folder: whole_ema(folder)[0]),
    Reader("of a stage of an export, EXPORT/STAGE", holds_tree, load_tree),
    Reader("unet/ of Stable Diffusion in diffusers' layout", _is_unet, _unet_weights),
    Reader("with unet/ and controlnet/ of Stable Diffusion", _is_controlled, _controlled_weights),
    Reader("with one single file of CompVis", _has_single_file, _single_file_weights),
)


def reader_of(folder: epath.Path, where: str) -> Reader:
    """Returns the first that reads this kind of folder; ValueError, beginning with `where`."""
    found = next((reader for reader in READERS if reader.holds(folder)), None)
    if found is not None:
        return found
    kinds = ", or ".join(reader.what for reader in READERS)
    below = sorted(folder.iterdir()) if folder.is_dir() else []
    inside = next((path for path in below if any(r.holds(path) for r in READERS)), None)
    meant = "" if inside is None else f"; did you mean {inside}?"
    raise ValueError(f"{where}: must be {kinds}{meant}")


def read_named(folder: epath.Path) -> Named:
    """Returns the weights of a folder as float32 host arrays, by name."""
    tree = reader_of(folder, f"weights of {str(folder)!r}").read(folder)
    return {name: np.asarray(leaf, np.float32) for name, leaf in by_name(tree).items()}


def fixed_weights(metadata: Mapping[str, Any], folder: epath.Path) -> Params:
    """Returns what a run does not train, as its checkpoint's metadata record it; {} for nothing.

    folder: the run's, WORKDIR/RUN. Raises CheckpointError where it is other weights now.
    """
    record = metadata.get("start", {})
    if not record.get("fixed"):
        return {}
    who, source = f"run {metadata['run']!r}", source_folder(record["path"], folder.parent)
    try:
        leaves = read_named(source)
    except ValueError as error:
        raise CheckpointError(
            f"{who} trains a part of the weights of {source} and reads the others from "
            f"there: {error}; restore them"
        ) from error
    fixed = {name: leaves[name] for name in record["fixed"] if name in leaves}
    found = digest(fixed)
    if found != record["fixed_weights"]:
        raise CheckpointError(
            f"{who} was trained with fixed weights {record['fixed_weights']} of {source}, which "
            f"now holds {found}; restore those that it began with"
        )
    return nested(fixed)


def digest(leaves: Named) -> str:
    """Returns 16 hex digits that change with any name, shape or bit of float32 host arrays."""

    def tensor(leaf: np.ndarray) -> Tensor:
        return Tensor(leaf.shape, "F32", lambda: leaf)

    return content_hash({name: tensor(leaf) for name, leaf in leaves.items()})

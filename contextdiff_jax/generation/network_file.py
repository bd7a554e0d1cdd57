"""Networks that were tuned on a clip, each in a file beside the U-Net: NAME.safetensors."""

from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from contextdiff_jax.encoders.name_map import check_fit
from contextdiff_jax.encoders.tensor_files import open_file, read_floats
from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.training.parameter_names import by_name, nested


def save_network(folder: epath.PathLike, name: str, params: Any) -> None:
    """Writes a network's parameters by their names."""
    arrays = {each: np.ascontiguousarray(leaf) for each, leaf in by_name(params).items()}
    with written_whole(cleared(folder) / _file(name)) as path:
        save_file(arrays, str(path))


def has_network(folder: epath.PathLike, name: str) -> bool:
    """Whether a folder has a network of this name."""
    return (epath.Path(folder) / _file(name)).exists()


def load_network(folder: epath.PathLike, name: str, abstract: Any) -> Any:
    """Returns the parameters of a folder's network, with the shapes of `abstract`.

    Raises ValueError where it has none, or one of other shapes.
    """
    path = epath.Path(folder) / _file(name)
    if not path.exists():
        raise ValueError(f"{str(folder)!r} has no {path.name}: it was tuned without config.{name}")
    tensors = open_file(path)
    expected = {each: tuple(leaf.shape) for each, leaf in by_name(abstract).items()}
    found = {each: tensor.shape for each, tensor in tensors.items()}
    check_fit(expected, found, repr(str(path)))
    return nested({n: read_floats(n, tensor, repr(str(path))) for n, tensor in tensors.items()})


def _file(name: str) -> str:
    return f"{name}.safetensors"

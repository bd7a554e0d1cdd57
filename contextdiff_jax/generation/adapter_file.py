"""The adapter that was tuned on a clip, in a file beside its U-Net."""

from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from contextdiff_jax.encoders.name_map import check_fit
from contextdiff_jax.encoders.tensor_files import open_file, read_floats
from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.training.parameter_names import by_name, nested

NAME = "adapter.safetensors"


def save_adapter(folder: epath.Path, params: Any) -> None:
    """Writes an adapter's parameters by their names."""
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in by_name(params).items()}
    with written_whole(cleared(folder) / NAME) as path:
        save_file(arrays, str(path))


def load_adapter(folder: epath.PathLike, abstract: Any) -> Any:
    """Returns the parameters of a folder's adapter, with the shapes of `abstract`.

    Raises ValueError where it has none, or one of other shapes.
    """
    path = epath.Path(folder) / NAME
    if not path.exists():
        raise ValueError(f"{str(folder)!r} has no {NAME}: it was tuned without config.adapter")
    tensors = open_file(path)
    expected = {name: tuple(leaf.shape) for name, leaf in by_name(abstract).items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    check_fit(expected, found, repr(str(path)))
    return nested({n: read_floats(n, tensor, repr(str(path))) for n, tensor in tensors.items()})

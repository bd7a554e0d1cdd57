"""Reading folders of safetensors files lazily, tensor by tensor, without torch."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors asks numpy for)
import numpy as np
from safetensors import safe_open

from contextdiff_jax.system.finite import all_finite
from contextdiff_jax.system.json_files import read_object

# By the names safetensors has for them. Quantized weights would need scales that nothing describes.
FLOATS = ("F32", "F16", "BF16")
_MOST_CHARACTERS = 1000  # of a tensor's name


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: shape and dtype, known without reading, and a function that reads it.

    dtype: as safetensors names it, "F32". read: raises ValueError where the file cannot be read.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_folder(folder: str | pathlib.Path, stem: str = "model") -> dict[str, Tensor]:
    """Returns the tensors of `stem`.safetensors, or of the shards that its index file lists.

    Raises FileNotFoundError where the folder, its weights or a shard are missing, and ValueError
    where a shard lacks a tensor that the index promises, lies outside the folder, or a file is
    damaged.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"weights folder {str(folder)!r} does not exist")
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return open_file(single)
    if not index.is_file():
        present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"weights folder {str(folder)!r} has neither {single.name} nor {index.name}; "
            f"it has {present}"
        )
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
        raise ValueError(f"{str(index)!r} has no weight_map from tensors to files beside it")
    return _open_shards(folder, weight_map, index.name)


def _is_file_name(name: Any) -> bool:
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        return False
    return len(name) <= 255 and name.isprintable() and not {"/", "\\"} & set(name)


def _open_shards(
    folder: pathlib.Path, weight_map: Mapping[str, str], index: str
) -> dict[str, Tensor]:
    absent = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
    if absent:
        raise FileNotFoundError(f"{str(folder)!r} lacks shards its {index} lists: {listed(absent)}")
    shards = {name: open_file(folder / name) for name in sorted(set(weight_map.values()))}
    lost = sorted(name for name, shard in weight_map.items() if name not in shards[shard])
    if lost:
        raise ValueError(f"shards of {str(folder)!r} lack tensors {index} lists: {listed(lost)}")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def open_file(path: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of one file; ValueError where it is none of safetensors."""
    try:
        file = safe_open(str(path), "np")
        names = list(file.keys())
    except Exception as error:  # safetensors has one error class, private to its Rust module
        raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    wrong = [name for name in names if len(name) > _MOST_CHARACTERS or not name.isprintable()]
    if wrong:
        raise ValueError(f"{str(path)!r} has a tensor of the name {wrong[0][:60]!r}, no plain text")

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        return Tensor(tuple(part.get_shape()), part.get_dtype(), lambda: _read(file, name, path))

    return {name: tensor(name) for name in names}


def _read(file: Any, name: str, path: pathlib.Path) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # types numpy has no name for, a disk that fails
        raise ValueError(f"{name} of {str(path)!r} cannot be read: {error}") from error


def read_floats(name: str, tensor: Tensor, where: str) -> np.ndarray:
    """Returns a tensor of one of FLOATS; ValueError, naming it, where a value is not finite."""
    array = tensor.read()
    check_finite(name, array, where)
    return array


def check_finite(name: str, array: np.ndarray, where: str) -> None:
    """Raises ValueError, naming the tensor, where a value of it is NaN or infinite."""
    if not all_finite(array):
        wrong = array.size - int(np.isfinite(array).sum())
        raise ValueError(f"{name} of {where} holds {wrong} NaN or infinite values of {array.size}")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns 16 hex digits of the SHA-256 over names, dtypes, shapes and bytes.

    The same for one file and for shards of the same tensors. Reads everything once.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].read())
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()[:16]


def listed(names: Iterable[str], most: int = 5) -> str:
    """Returns the first names and how many more there are, for an error message."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

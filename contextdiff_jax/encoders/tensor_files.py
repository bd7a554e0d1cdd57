"""Reading folders of safetensors files lazily, tensor by tensor, without torch."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors asks numpy for)
import numpy as np
from safetensors import safe_open


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: its shape, known without reading, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def open_folder(folder: str | pathlib.Path, stem: str = "model") -> dict[str, Tensor]:
    """Returns the tensors of `stem`.safetensors, or of the shards that its index file lists.

    Raises FileNotFoundError where the folder, its weights or a shard are missing, and ValueError
    where a shard lacks a tensor that the index promises or a file is damaged.
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
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{str(index)!r} has no weight_map from tensors to files")
    return _open_shards(folder, weight_map, index.name)


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
    except Exception as error:  # safetensors has one error class, private to its Rust module
        raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error

    def tensor(name: str) -> Tensor:
        return Tensor(tuple(file.get_slice(name).get_shape()), lambda: file.get_tensor(name))

    return {name: tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)


def read_json(path: pathlib.Path) -> dict:
    """Returns the object in a JSON file, or raises naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error


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

"""Folders of safetensors files without torch: read lazily, tensor by tensor, and written."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors asks numpy for)
import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save_file

from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.system.finite import all_finite
from contextdiff_jax.system.json_files import read_object

# By the names safetensors has for them. Quantized weights would need scales that nothing describes.
FLOATS = ("F32", "F16", "BF16")
VARIANTS = ("fp16",)  # of published pipelines' files
_MOST_CHARACTERS = 1000  # of a tensor's name
_PICKLES = (".pth", ".pt", ".pkl", ".ckpt", ".bin")
# Checkpoints of a training keep the weights below "state_dict", beside numbers.
_CONVERSION = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], 'cpu'); "
    "d = d.get('state_dict', d); "
    "s.save_file({k: v.clone() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file: shape and dtype, known without reading, and a function that reads it.

    dtype: as safetensors names it, "F32". read: raises ValueError where the file cannot be read.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def open_folder(
    folder: str | pathlib.Path, stem: str = "model", variants: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Returns the tensors of `stem`.safetensors, or of the shards that its index file lists.

    Where neither is there, those of the first of `variants` (as diffusers names them, "fp16").

    Raises FileNotFoundError where the folder, its weights or a shard are missing, and ValueError
    where a shard lacks a tensor that the index promises, lies outside the folder, a file is
    damaged, or the weights are a pickle.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"weights folder {str(folder)!r} does not exist")
    for suffix in ("", *(f".{variant}" for variant in variants)):
        single = folder / f"{stem}{suffix}.safetensors"
        index = folder / f"{stem}.safetensors.index{suffix}.json"
        if single.is_file():
            return open_file(single)
        if index.is_file():
            return _open_shards(folder, _weight_map(index), index.name)
    present = sorted(path.name for path in folder.iterdir())
    for name in present:
        if stem in name:  # pytorch_model.bin too
            _refuse_pickle(folder / name, folder / f"{stem}.safetensors")
    raise FileNotFoundError(
        f"weights folder {str(folder)!r} has neither {stem}.safetensors nor "
        f"{stem}.safetensors.index.json; it has {', '.join(present) or 'nothing'}"
    )


def _weight_map(index: pathlib.Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(map(_is_file_name, weight_map.values())):
        raise ValueError(f"{str(index)!r} has no weight_map from tensors to files beside it")
    return weight_map


def _refuse_pickle(path: pathlib.Path, converted: pathlib.Path) -> None:
    """Raises ValueError for a pickle, saying how to make the file `converted` of it."""
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{str(path)!r} is a pickle, which only torch reads; convert it where torch is "
            f'installed: python -c "{_CONVERSION}" {path} {converted}'
        )


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
    """Returns the tensors of one file.

    Raises ValueError where it is none of safetensors; of a pickle the sentence says how to convert
    it.
    """
    _refuse_pickle(path, path.with_suffix(".safetensors"))
    try:
        file = safe_open(str(path), "np")
        names = list(file.keys())
    except Exception as error:  # safetensors has one error class, private to its Rust module
        raise ValueError(f"{str(path)!r} is not a readable safetensors file: {error}") from error
    wrong = [name for name in names if len(name) > _MOST_CHARACTERS or not name.isprintable()]
    if wrong:
        raise ValueError(f"{str(path)!r} has a tensor named {wrong[0][:60]!r}: must be plain text")

    def tensor(name: str) -> Tensor:
        part = file.get_slice(name)
        return Tensor(tuple(part.get_shape()), part.get_dtype(), lambda: _read(file, name, path))

    return {name: tensor(name) for name in names}


def file_metadata(path: pathlib.Path) -> dict[str, str]:
    """Returns the metadata of a file that `open_file` reads."""
    with safe_open(str(path), "np") as file:
        return file.metadata() or {}


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


def write_folder(
    folder: epath.PathLike,
    description: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    stem: str = "model",
) -> None:
    """Writes config.json and `stem`.safetensors; each file appears whole or not at all."""
    text = json.dumps(description, indent=2) + "\n"
    target = cleared(folder)
    with written_whole(target / f"{stem}.safetensors") as path:
        save_file(dict(tensors), str(path), metadata={"format": "pt"})
    with written_whole(target / "config.json") as path:
        path.write_text(text)


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

"""From tensors named and laid out as in torch checkpoints to a Flax parameter tree, and back.

A model is described by one table of `Entry`; both directions read it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from contextdiff_jax.encoders.tensor_files import FLOATS, Tensor, listed, read_floats

Path = tuple[str, ...]

# Order of torch's axes in the Flax array: linear (out, in) -> (in, out), conv OIHW -> HWIO, and
# over time (out, in, 3) -> (3, in, out).
LAYOUTS: Mapping[str, tuple[int, ...] | None] = MappingProxyType(
    {"same": None, "linear": (1, 0), "conv": (2, 3, 1, 0), "time": (2, 1, 0)}
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter of the Flax tree and the tensor, or stack of tensors, it corresponds to.

    path: of the parameter in the tree, slash-separated. name: of the tensor; with "{i}" in it the
    parameter stacks the tensors of i = first, first + 1, ... on its leading axis. layout: axes of
    one tensor.
    """

    path: str
    name: str
    layout: Literal["same", "linear", "conv", "time"] = "same"
    first: int = 0

    @property
    def stacked(self) -> bool:
        """Whether the parameter is a stack of tensors."""
        return "{i}" in self.name


@dataclasses.dataclass(frozen=True)
class _Part:
    """One named tensor of an entry: its shape in torch's layout, its place in the stack."""

    name: str
    shape: tuple[int, ...]
    index: int | None


def to_params(
    table: Sequence[Entry],
    abstract: Any,
    tensors: Mapping[str, Tensor],
    ignored: Callable[[str], bool],
    where: str,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Returns the parameter tree as nested dicts of numpy arrays.

    Args:
      table: covers every parameter of `abstract` once.
      abstract: tree of ShapeDtypeStructs that the result must have the shapes of.
      tensors: what the files hold. Read one at a time, into place: the peak is one tensor more
        than the result.
      ignored: whether a tensor that no entry names is a known extra.
      where: the source, for error messages.
      dtype: of the result, whatever the dtype of the files (float32, float16 or bfloat16).

    Raises:
      ValueError: naming all missing, unexpected and mis-shaped tensors, and those of a dtype not
        in FLOATS (the first few of each), before any is read; or a tensor with values that are NaN
        or infinite.
    """
    shapes = _shapes(table, abstract)
    parts = {entry: list(_parts(entry, shapes[entry.path])) for entry in table}
    _check([part for group in parts.values() for part in group], tensors, ignored, where)
    flat = {}
    for entry, group in parts.items():
        array = np.empty(shapes[entry.path], dtype)
        for part in group:
            one = read_floats(part.name, tensors[part.name], where)
            array[... if part.index is None else part.index] = _transposed(
                one, LAYOUTS[entry.layout]
            )
        flat[tuple(entry.path.split("/"))] = array
    return traverse_util.unflatten_dict(flat)


def from_params(table: Sequence[Entry], abstract: Any, params: Any) -> dict[str, np.ndarray]:
    """Returns {tensor name: float32 array in torch's layout} of a parameter tree.

    Raises ValueError where the shapes of `params` are not those of `abstract`.
    """
    shapes = _shapes(table, abstract)
    flat = traverse_util.flatten_dict(nn.unbox(params), sep="/")
    wrong = [
        path for path, shape in shapes.items() if path not in flat or flat[path].shape != shape
    ]
    wrong += sorted(set(flat) - set(shapes))
    if wrong:
        raise ValueError(f"parameters do not fit the config: {listed(wrong)}")
    tensors = {}
    for entry in table:
        layout = LAYOUTS[entry.layout]
        back = None if layout is None else tuple(np.argsort(layout))
        array = np.asarray(flat[entry.path], np.float32)
        for part in _parts(entry, array.shape):
            one = array if part.index is None else array[part.index]
            # safetensors writes the buffer of an array, whatever its strides.
            tensors[part.name] = np.ascontiguousarray(_transposed(one, back)).reshape(part.shape)
    return tensors


def _shapes(table: Sequence[Entry], abstract: Any) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(nn.unbox(abstract), sep="/")
    paths = [entry.path for entry in table]
    if sorted(paths) != sorted(flat):
        raise ValueError(f"name map and module differ: {sorted(set(paths) ^ set(flat))}")
    return jax.tree.map(lambda leaf: leaf.shape, flat)


def _parts(entry: Entry, shape: tuple[int, ...]) -> Iterator[_Part]:
    layout = LAYOUTS[entry.layout]
    one = shape[1:] if entry.stacked else shape
    if layout is not None:
        one = tuple(one[axis] for axis in np.argsort(layout))
    if not entry.stacked:
        yield _Part(entry.name, one, None)
        return
    for index in range(shape[0]):
        yield _Part(entry.name.format(i=entry.first + index), one, index)


def _transposed(array: np.ndarray, order: tuple[int, ...] | None) -> np.ndarray:
    return array if order is None else array.transpose(order)


def _check(
    parts: Sequence[_Part],
    tensors: Mapping[str, Tensor],
    ignored: Callable[[str], bool],
    where: str,
) -> None:
    expected = {part.name: part.shape for part in parts}
    mistyped = [
        f"{name} is {tensors[name].dtype}, must be one of {', '.join(FLOATS)}"
        for name in expected
        if name in tensors and tensors[name].dtype not in FLOATS
    ]
    found = {name: tensor.shape for name, tensor in tensors.items() if not ignored(name)}
    check_fit(expected, found | {n: tensors[n].shape for n in expected if n in tensors}, where)
    if mistyped:
        raise ValueError(f"tensors of {where} cannot be read: {listed(mistyped)}")


def check_fit(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raises ValueError naming missing, unexpected and mis-shaped tensors, the first few of each.

    expected, found: shapes by name. where: the source.
    """
    shaped = [
        f"{name} is {found[name]}, must be {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (
            ("missing", sorted(set(expected) - set(found))),
            ("unexpected", sorted(set(found) - set(expected))),
            ("of another shape", shaped),
        )
        if names
    ]
    if problems:
        raise ValueError(f"tensors of {where} do not fit the model; {'; '.join(problems)}")

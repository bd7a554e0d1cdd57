"""Operations, memory traffic and collectives of a compiled program, per chip."""

import collections
import dataclasses
import math
import re

from contextdiff_jax.compilation import products
from contextdiff_jax.compilation.hlo import Array, Computation, Instruction, Module

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# Names for memory, not traffic; loops and calls are counted by what they hold.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "domain",
}  # fmt: skip
_OP_NAME = re.compile(r'\bop_name="([^"]*)"')
# The printer's three forms: groups x members <= order, the members of each, axes of a mesh.
_GROUPS = re.compile(r"\breplica_groups=\[(\d+),(\d+)\]")
_GROUP_LIST = re.compile(r"\breplica_groups=\{\{([\d,]*)\}")
_GROUP_MESH = re.compile(r"\breplica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")  # or a part of one, 'x':(major)size
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind.

    count: how often one starts. bytes: what one chip sends over the links in all, by the usual
    ring algorithms (all-reduce counts twice).
    """

    count: int
    bytes: float


def flops(module: Module) -> float:
    """Returns multiplications and additions of matrix products and convolutions, per chip.

    Elementwise work is not counted, nor are products inside custom calls that products.flops does
    not know (see `custom_calls`).
    """
    return sum(
        times * (products.flops(computation, instruction) or 0.0)
        for computation, instruction, times in module.each()
    )


def custom_calls(module: Module) -> dict[str, int]:
    """Returns how often each custom call that `flops` leaves out runs, by target."""
    found: collections.Counter = collections.Counter()
    for computation, instruction, times in module.each():
        if instruction.opcode != "custom-call":
            continue
        if products.flops(computation, instruction) is None:
            found[products.target(instruction)] += times
    return dict(found)


def hbm_bytes(module: Module) -> float:
    """Returns the bytes read from and written to HBM, per chip, as if nothing stayed on chip.

    Each instruction outside a fusion reads its operands and writes its result once. A slice of a
    larger array counts as the slice, an update in place as the update.
    """
    total = 0.0
    for computation, instruction, times in module.each():
        if computation.name in module.fused or instruction.opcode in _FREE:
            continue
        if instruction.opcode.endswith(("-done", "-update")):
            continue
        total += times * _traffic(module, computation, instruction)
    return total


def largest(module: Module, count: int) -> list[tuple[float, str, str]]:
    """Returns the largest arrays in HBM that the program computes: (bytes, shape, operation).

    Of arrays of one shape only the first is named.
    """
    found: dict[Array, str] = {}
    for computation, instruction, _ in module.each():
        if computation.name in module.fused or instruction.opcode in _FREE:
            continue
        if instruction.opcode.endswith(("-start", "-done", "-update")):
            continue
        name = _OP_NAME.search(instruction.attributes)
        for array in instruction.shape:
            if not array.fast:
                found.setdefault(array, name.group(1) if name else instruction.name)
    ordered = sorted(found, key=lambda array: array.bytes, reverse=True)
    return [(array.bytes, str(array), found[array]) for array in ordered[:count]]


def collectives(module: Module) -> dict[str, Collective]:
    """Returns the collectives by kind."""
    counts: collections.Counter = collections.Counter()
    moved: dict[str, float] = collections.defaultdict(float)
    for computation, instruction, times in module.each():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        if kind == "all-reduce" and computation.name in module.fused:
            kind = "reduce-scatter"  # the TPU's, which is a fusion of it with its slice
        counts[kind] += times
        moved[kind] += times * _moved(kind, computation, instruction)
    return {kind: Collective(counts[kind], moved[kind]) for kind in counts}


def between_slices(module: Module, slices: int) -> Collective:
    """Returns what one chip sends to other slices, over the data center's network, in all.

    The TPU's compiler has made of each collective across slices one within them and a transfer
    by the hosts; the former is in `collectives`.
    """
    count, moved = 0, 0.0
    for computation, instruction, times in module.each():
        kind = _BETWEEN_SLICES.search(instruction.attributes)
        if instruction.opcode != "send" or not kind:
            continue
        sent = sum(array.bytes for array in computation.arrays(instruction)[0])
        count += times
        moved += times * _in_ring(kind.group(1).lower().replace("_", "-"), sent, slices)
    return Collective(count, moved)


def _traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    kind, operands = instruction.opcode, computation.arrays(instruction)
    result = _hbm(instruction.shape)
    if kind == "custom-call" and products.of_library(instruction) and len(instruction.shape) > 1:
        result = _hbm(instruction.shape[:-1])  # the last is room to work in
    if kind in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if kind in ("dynamic-update-slice", "scatter"):
        return 2 * _hbm(operands[1] if kind == "dynamic-update-slice" else operands[-1])
    if kind.removesuffix("-start") in COLLECTIVES or kind in ("copy-start", "async-start"):
        # The shape of an asynchronous start may name the operands again beside the result.
        read = [array for shape in operands for array in shape]
        written = list(instruction.shape)
        if len(written) > len(read):
            written = list((collections.Counter(written) - collections.Counter(read)).elements())
        return _hbm(tuple(read)) + _hbm(tuple(written))
    if kind == "fusion" and (inner := instruction.called.get("calls")):
        return _fusion_traffic(module.computations[inner[0]], operands, instruction)
    return result + sum(map(_hbm, operands))


def _fusion_traffic(
    inner: Computation, operands: list[tuple[Array, ...]], instruction: Instruction
) -> float:
    """Reads what the fused computation looks at of each operand; writes what it changes."""
    parameters = [i for i in inner.instructions.values() if i.opcode == "parameter"]
    # Printed in any order; which operand one is, its number says.
    parameters.sort(key=lambda parameter: int(re.match(r"\((\d+)\)", parameter.attributes)[1]))
    root = next(i for i in inner.instructions.values() if i.root)
    updated = [r for r in _roots(inner, root) if r.opcode == "dynamic-update-slice"]
    in_place = {r.operands[0] for r in updated}
    total = _hbm(instruction.shape)
    for update in updated:
        total -= _hbm(update.shape)
        total += _hbm(inner.instructions[update.operands[1]].shape)
    for parameter, shape in zip(parameters, operands, strict=True):
        users = inner.users.get(parameter.name, [])
        if parameter.name in in_place and len(users) == 1:
            continue
        if users and all(user.opcode in ("dynamic-slice", "slice", "gather") for user in users):
            total += min(_hbm(shape), sum(_hbm(user.shape) for user in users))
        else:
            total += _hbm(shape)
    return max(total, 0.0)


def _roots(inner: Computation, root: Instruction) -> list[Instruction]:
    if root.opcode == "tuple":
        return [inner.instructions[name] for name in root.operands]
    return [root]


def _hbm(shape: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in shape if not array.fast)


def _moved(kind: str, computation: Computation, instruction: Instruction) -> float:
    operands = sum(a.bytes for shape in computation.arrays(instruction) for a in shape)
    return _in_ring(kind, operands, _group_size(instruction.attributes))


def _in_ring(kind: str, operands: float, group: int | None) -> float:
    """Returns the bytes that one member of a group sends of so many bytes of operands."""
    share = (group - 1) / group if group else 1.0
    if kind == "all-gather":
        return operands * (group - 1 if group else 1)
    if kind == "all-reduce":
        return 2 * operands * share
    if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all"):
        return operands * share
    return operands


def _group_size(attributes: str) -> int | None:
    """Returns how many chips a collective joins, None for all there are.

    Raises ValueError for a form that is not known: its traffic would be anybody's guess.
    """
    if found := _GROUPS.search(attributes):
        return int(found.group(2))
    if found := _GROUP_LIST.search(attributes):
        return len(found.group(1).split(","))
    if found := _GROUP_MESH.search(attributes):
        sizes = dict(_AXIS.findall(found.group(1)))
        named = _GROUP_AXIS.findall(found.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    at = attributes.find("replica_groups=")
    if at < 0 or attributes.startswith("replica_groups={}", at):
        return None
    raise ValueError(f"replica groups of an unknown form: {attributes[at : at + 80]}")

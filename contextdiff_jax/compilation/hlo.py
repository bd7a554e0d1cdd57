"""Reads XLA's optimized HLO text: computations, instructions, and how often each is run.

XLA's own cost analysis counts the body of a loop once, however often it runs; here a computation's
count is that of its callers times the loop's known trip count. The grammar is the printer's in
xla/hlo/ir; only what costs are counted from is kept.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "s4": 0.5, "u4": 0.5,
    "f8e4m3fn": 1, "f8e5m2": 1, "token": 0, "opaque": 0,
}  # fmt: skip

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_BRANCHES = re.compile(
    r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INTEGER = re.compile(r"^\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape. fast: in on-chip memory instead of HBM (TPU layouts with S(1))."""

    dtype: str
    dims: tuple[int, ...]
    fast: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        return self.size * BYTES.get(self.dtype, 4)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass
class Instruction:
    """name = shape opcode(operands), attributes."""

    name: str
    shape: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """Names of called computations by role: calls, to_apply, body, condition, branches."""
        found: dict[str, list[str]] = collections.defaultdict(list)
        for role, names in _CALLED.findall(self.attributes):
            found[role] += [name.strip(" %{}") for name in names.split(",")]
        for several, one in _BRANCHES.findall(self.attributes):
            names = several.split(",") if several else [one]
            found["branches"] += [name.strip(" %") for name in names]
        return found


@dataclasses.dataclass
class Computation:
    """Instructions by name, in order."""

    name: str
    instructions: dict[str, Instruction]

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each instruction."""
        found: dict[str, list[Instruction]] = collections.defaultdict(list)
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                found[operand].append(instruction)
        return found

    def arrays(self, instruction: Instruction) -> list[tuple[Array, ...]]:
        """Shapes of the operands."""
        return [self.instructions[name].shape for name in instruction.operands]


@dataclasses.dataclass
class Module:
    """All computations by name, and the entry's name."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation runs, fused ones and reducers included."""
        counts: dict[str, int] = collections.Counter()
        for name in self._callers_first():
            times = 1 if name == self.entry else counts[name]
            counts[name] = times
            for instruction in self.computations[name].instructions.values():
                trips = self.trips(instruction) or 1
                for called in instruction.called.values():
                    for callee in called:
                        counts[callee] += times * trips
        return counts

    @functools.cached_property
    def fused(self) -> set[str]:
        """Computations inside a fusion, a reducer or the like: they read no memory of their own."""
        inner: set[str] = set()
        for name in self._callers_first():
            for instruction in self.computations[name].instructions.values():
                for role, called in instruction.called.items():
                    own = role in ("body", "condition", "branches") or instruction.opcode in (
                        "call",
                        "async-start",
                    )
                    if name in inner or not own:
                        inner.update(called)
        return inner

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop runs: as the compiler states, or up to its condition's bound.

        None where neither is known. A condition counts when it compares with one constant.
        """
        if found := _TRIPS.search(loop.attributes):
            return int(found.group(1))
        bounds = [
            int(value.group(1))
            for name in loop.called.get("condition", [])
            for item in self.computations[name].instructions.values()
            if item.opcode == "constant" and (value := _INTEGER.search(item.attributes))
        ]
        return bounds[0] if len(bounds) == 1 else None

    def unknown_loops(self) -> list[str]:
        """Loops whose trip count the compiler does not state; they are counted once."""
        return [
            instruction.name
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "while" and self.trips(instruction) is None
        ]

    def each(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Yields every instruction that runs, with its computation and how often it runs."""
        for name, times in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times

    def _callers_first(self) -> list[str]:
        order, seen = [], set()

        def visit(name: str) -> None:
            seen.add(name)
            for instruction in self.computations[name].instructions.values():
                for called in instruction.called.values():
                    for callee in called:
                        if callee not in seen and callee in self.computations:
                            visit(callee)
            order.append(name)

        visit(self.entry)
        return order[::-1]


def parse(text: str) -> Module:
    """Returns the module of `compiled.as_text()`. Raises ValueError when there is no entry."""
    computations: dict[str, Computation] = {}
    current, entry = None, None
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")) and "->" in line:
            is_entry = line.startswith("ENTRY")
            name = line.removeprefix("ENTRY").strip().lstrip("%").split(" ", 1)[0].split("(")[0]
            current = computations[name] = Computation(name, {})
            entry = name if is_entry else entry
        elif current is not None and (head := _HEAD.match(line)):
            instruction = _instruction(line, head)
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise ValueError("the compiled program's text has no ENTRY computation")
    return Module(computations, entry)


def _instruction(line: str, head: re.Match) -> Instruction:
    start = head.end()
    end = _closing(line, start) + 1 if line[start] == "(" else _shape_end(line, start)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"not an HLO instruction: {line.strip()[:120]}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close]
    # parameter(0) and constant(...) hold no names of instructions.
    literal = opcode.group(1) in ("parameter", "constant", "iota")
    return Instruction(
        name=head.group(2),
        shape=tuple(_arrays(line[start:end])),
        opcode=opcode.group(1),
        operands=() if literal else tuple(_NAME.findall(inside)),
        # A constant's value is kept where others have attributes.
        attributes=line[opcode.end() - 1 :] if literal else line[close + 1 :],
        root=bool(head.group(1)),
    )


def _shape_end(line: str, start: int) -> int:
    match = _ARRAY.match(line, start)
    if match is None:
        raise ValueError(f"not an HLO shape: {line[start : start + 80]}")
    return match.end()


def _closing(line: str, start: int) -> int:
    depth = 0
    for place in range(start, len(line)):
        if line[place] == "(":
            depth += 1
        elif line[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"unbalanced parentheses: {line.strip()[:120]}")


def _arrays(text: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(text):
        sizes = tuple(int(d.removeprefix("<=")) for d in dims.split(",") if d)
        yield Array(dtype, sizes, fast="S(1)" in layout)

"""The compiler's figures for one program on one kind of slice, as a text and as JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from contextdiff_jax.compilation import hlo, operations
from contextdiff_jax.parallel.topologies import GIB, Chip

LARGEST = 3  # arrays that are named
_MESSAGE_LINES, _MESSAGE_CHARACTERS = 24, 2400  # of the compiler's own; whole ones fill pages


class OutOfMemory(Exception):
    """The compiler gave up: one array alone exceeds HBM, or more than it can place.

    figures: JSON-able, with what was known before compiling and the compiler's whole message.
    """

    def __init__(self, known: Mapping[str, Any], message: str):
        super().__init__(excerpt(message))
        self.figures = {**known, "fits": False, "compiler": message}


@dataclasses.dataclass(frozen=True)
class Report:
    """Figures per chip unless said otherwise; bytes, operations, seconds.

    parameters, model_flops: of the whole program, all chips together. peak_bytes: arguments,
    results that are no donated arguments, temporaries and code. collectives: {kind: (count,
    bytes sent)}. compute_s, memory_s, network_s: the roofline's times at published peaks;
    the step takes at least the largest (traffic counts as if no value stayed on chip, so memory_s
    is an upper estimate). mfu_bound: model operations over what the chips could do in that time.
    fits: whether peak_bytes is within usable_bytes of HBM. effort: libtpu's; a run compiles with 0.
    None where the chip's figures are unknown. sent_between_slices: (count, bytes that one chip
    sends), which take between_slices_s; part of the roofline where the chip's figure is known, and
    0 with one slice. largest: (bytes, shape, operation) of arrays that it computes.
    """

    config: str
    run: str
    what: str
    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    model_flops: float
    argument_bytes: int
    temporary_bytes: int
    code_bytes: int
    peak_bytes: int
    hbm_bytes: float | None
    fits: bool | None
    compiled_flops: float
    flops_ratio: float
    traffic_bytes: float
    collectives: dict[str, tuple[int, float]]
    custom_calls: dict[str, int]
    uncounted_loops: int
    compute_s: float | None
    memory_s: float | None
    network_s: float | None
    step_s: float | None
    mfu_bound: float | None
    lower_s: float
    compile_s: float
    effort: float | None
    versions: dict[str, str]
    slices: int = 1
    sent_between_slices: tuple[int, float] = (0, 0.0)
    between_slices_s: float | None = None
    largest: Sequence[tuple[float, str, str]] = ()
    usable_bytes: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-able dict."""
        return dataclasses.asdict(self)


def measure(
    compiled: jax.stages.Compiled,
    chip: Chip | None,
    chips: int,
    model_flops: float,
    slices: int = 1,
) -> dict[str, Any]:
    """Returns the fields of Report that follow from the compiled program."""
    module = hlo.parse(compiled.as_text())
    memory = compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    flops, traffic = operations.flops(module), operations.hbm_bytes(module)
    moved, between = operations.collectives(module), operations.between_slices(module, slices)
    found: dict[str, Any] = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "peak_bytes": peak,
        "compiled_flops": flops,
        "flops_ratio": flops * chips / model_flops,
        "traffic_bytes": traffic,
        "collectives": {kind: (item.count, item.bytes) for kind, item in sorted(moved.items())},
        "sent_between_slices": (between.count, between.bytes),
        "custom_calls": operations.custom_calls(module),
        "uncounted_loops": len(module.unknown_loops()),
        "largest": operations.largest(module, LARGEST),
    }
    times = dict.fromkeys(("compute_s", "memory_s", "network_s", "step_s", "mfu_bound"))
    found |= {"hbm_bytes": None, "fits": None} | times
    if chip is not None:
        sent = sum(item.bytes for item in moved.values())
        times = {
            "compute_s": flops / chip.flops,
            "memory_s": traffic / chip.hbm_bandwidth,
            "network_s": sent / chip.ici_bandwidth,
        }
        if chip.dcn_bandwidth is not None:
            times["between_slices_s"] = between.bytes / chip.dcn_bandwidth
        step, usable = max(times.values()), chip.usable * chip.hbm
        found |= times | {
            "step_s": step,
            "mfu_bound": model_flops / (step * chip.flops * chips),
            "hbm_bytes": chip.hbm,
            "usable_bytes": usable,
            "fits": peak <= usable,
        }
    return found


def describe(report: Report) -> str:
    """Returns the report for people."""
    lines = [
        f"{report.config} {report.run}, {report.what}, {report.topology}: {report.chips} chips, "
        f"mesh {' x '.join(f'{k} {v}' for k, v in report.mesh.items())}, "
        f"batch {report.batch_size}",
        f"parameters       {report.parameters:,}",
        f"memory per chip  {_gib(report.peak_bytes)}: arguments {_gib(report.argument_bytes)}, "
        f"temporaries {_gib(report.temporary_bytes)}, code {_gib(report.code_bytes)}",
    ]
    if report.usable_bytes is not None and report.hbm_bytes is not None:
        verdict = "fits" if report.fits else "DOES NOT FIT"
        usable = _gib(report.usable_bytes)
        lines.append(f"                 {verdict}: {usable} usable of {_gib(report.hbm_bytes)} HBM")
    lines += [
        f"operations       model {report.model_flops / report.chips / 1e12:.3f} TFLOP per chip, "
        f"compiled {report.compiled_flops / 1e12:.3f} ({report.flops_ratio:.2f} x)",
        f"HBM traffic      {report.traffic_bytes / 1e9:.1f} GB per chip (upper estimate)",
    ]
    for kind, (count, sent) in report.collectives.items():
        lines.append(f"{kind:<17}{count:,} times, {sent / 1e9:.2f} GB sent per chip")
    if report.slices > 1:
        count, sent = report.sent_between_slices
        lines.append(f"between slices   {count:,} times, {sent / 1e9:.2f} GB sent per chip")
    if report.step_s is not None:
        across = ""
        if report.slices > 1 and report.between_slices_s is not None:
            across = f", between slices {report.between_slices_s:.3f}"
        lines.append(
            f"roofline         {report.step_s:.3f} s: compute {report.compute_s:.3f}, "
            f"memory {report.memory_s:.3f}, network {report.network_s:.3f}{across}; "
            f"MFU at most {report.mfu_bound:.0%}"
        )
    if report.slices > 1 and report.step_s is not None and report.between_slices_s is None:
        lines.append(
            "not counted      the time between slices: no bandwidth is published for this chip"
        )
    for name, count in report.custom_calls.items():
        lines.append(f"not counted      custom call {name}, {count:,} times")
    if report.uncounted_loops:
        lines.append(f"counted once     {report.uncounted_loops} loops of unknown length")
    effort = "" if report.effort is None else f" at effort {report.effort:g}"
    lines.append(f"lowered in {report.lower_s:.0f} s, compiled in {report.compile_s:.0f} s{effort}")
    return "\n".join(lines)


def advice(report: Report, knobs: Mapping[str, str]) -> str:
    """Returns what takes the memory of a program that does not fit, and which knobs lower it.

    knobs: a sentence each for "arguments" and "temporaries"; that on the larger comes first.
    """
    taken = {"arguments": report.argument_bytes, "temporaries": report.temporary_bytes}
    order = sorted(taken, key=taken.__getitem__, reverse=True)
    lines = [
        f"{order[0]} take {_gib(taken[order[0]])} of {_gib(report.peak_bytes)} per chip, "
        f"{order[1]} {_gib(taken[order[1]])}; {_gib(report.usable_bytes or 0)} are usable. "
        "The largest arrays it computes:"
    ]
    lines += [f"  {_gib(size)} {shape} {name}" for size, shape, name in report.largest]
    return "\n".join([*lines, *(knobs[key] for key in order)])


def excerpt(message: str) -> str:
    """Returns the first lines of a compiler's message: totals, and the largest few allocations."""
    lines = [line for line in message.splitlines() if line.strip()]
    text = "\n".join(lines[:_MESSAGE_LINES])
    cut = len(lines) > _MESSAGE_LINES or len(text) > _MESSAGE_CHARACTERS
    return text[:_MESSAGE_CHARACTERS] + (" ..." if cut else "")


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"

"""Compiles a training step or a sampling run for absent hardware, and says what it needs.

  python -m contextdiff_jax.compile --config=configs/laion.py --run=base --topology=v5e:16x16 \
      --config.mesh.fsdp=16 --config.runs.base.batch_size=2048

A TPU topology needs libtpu (pip install libtpu), not a TPU; --topology=cpu:8 takes seconds. Prints
memory per chip, operations, the roofline's step time, collectives; --output writes them as JSON.
Exit codes: 0 it fits, or the chip's memory is unknown; 1 it does not fit; 2 refused; 70 failed.
"""

import dataclasses
import json
import os
import sys
import time
import traceback
from importlib import metadata
from typing import Any

import jax
from absl import flags
from etils import epath

from contextdiff_jax import command_line, entry
from contextdiff_jax.compilation import lower, report, shapes
from contextdiff_jax.config import Config, from_config_dict
from contextdiff_jax.parallel import topologies
from contextdiff_jax.parallel.device_errors import out_of_memory
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.runs.device_memory import knobs
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.system import notices

_CONFIG = command_line.define_config("Config file, as main's.")
_RUN = flags.DEFINE_string("run", None, "Run of the pipeline; by default its only or first one.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"Kind of chip and shape of a slice: {', '.join(topologies.EXAMPLES)}."
)
_SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices, joined by the data axis.")
_WHAT = flags.DEFINE_enum("what", "train", ["train", "sample"], "Training step or sampling run.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Global batch; 0: the run's in training, 8 pictures a chip in sampling."
)
_EFFORT = flags.DEFINE_float(
    "effort",
    -1.0,
    "How hard XLA works for TPUs (its exec_time_optimization_effort). Real runs use 0, which hides "
    "latencies with somewhat fewer temporaries and far more code. Compiling with 0 takes many "
    "times longer here, and for large networks tens of gigabytes.",
    lower_bound=-1.0,
    upper_bound=1.0,
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
flags.mark_flags_as_required(["config", "topology"])

EXIT_DOES_NOT_FIT, EXIT_FAILED = 1, os.EX_SOFTWARE


class DoesNotFit(Exception):
    """The program needs more memory than the chip has; says what takes it and what lowers it."""


def main() -> None:
    values = _CONFIG.value
    values.data_path = values.data_path or "no data is read"
    config = from_config_dict(values)
    name = _RUN.value or config.pipeline[0]
    if not 0 <= _BATCH_SIZE.value < 2**31:
        raise ValueError(
            f"--batch_size={_BATCH_SIZE.value}: must be at least 1 and below 2^31, or 0 for its own"
        )
    devices = shapes.devices(_TOPOLOGY.value, _SLICES.value)
    validate(config, name, files=False, platform=devices[0].platform)
    if _OUTPUT.value:
        if epath.Path(_OUTPUT.value).is_dir():
            raise ValueError(f"--output={_OUTPUT.value}: is a folder, must be a file")
        entry.check_writable(epath.Path(_OUTPUT.value).parent, "output")
    notices.doing(f"compiling run {name}")
    try:
        found = compile_report(config, name, _TOPOLOGY.value, devices)
    except report.OutOfMemory as error:
        _write(error.figures)
        knob = _knobs(config, name, error.figures["mesh"], error.figures["batch_size"])
        raise DoesNotFit("\n".join([str(error), *knob.values()])) from error
    print(report.describe(found))
    _write(found.to_json())
    if found.fits is False:
        raise DoesNotFit(report.advice(found, _knobs(config, name, found.mesh, found.batch_size)))


def run() -> None:
    """Runs main and ends with the code that says how it went.

    1 is here a result; elsewhere it is Python's for an exception.
    """
    try:
        entry.run(main)
    except DoesNotFit as why:
        print(f"contextdiff_jax: does not fit: {why}", file=sys.stderr)
        sys.exit(EXIT_DOES_NOT_FIT)
    except SystemExit as end:
        sys.exit(EXIT_FAILED if end.code == entry.EXIT_OTHER else end.code)
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_FAILED)


def _knobs(config: Config, name: str, mesh: dict[str, int], batch_size: int) -> dict[str, str]:
    return knobs(config, name, _WHAT.value, mesh, batch_size, _SLICES.value)


def _write(figures: dict[str, Any]) -> None:
    if _OUTPUT.value:
        epath.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + "\n")


def compile_report(
    config: Config, name: str, topology: str, devices: list[jax.Device]
) -> report.Report:
    """Lowers and compiles; returns the figures. Raises report.OutOfMemory where there are none."""
    chip = topologies.chip(topology)
    if chip is not None and config.dtype == "auto":
        config = dataclasses.replace(config, dtype="bfloat16")  # as "auto" is on the chip itself
    mesh = make_mesh(config.mesh, devices)
    effort = None if chip is None else _EFFORT.value
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        started = time.monotonic()
        program, batch_size = _lower(config, name, mesh)
        lowered = time.monotonic()
        print("\n".join(program.memory), flush=True)
        known = {
            "config": config.name,
            "run": name,
            "what": _WHAT.value,
            "topology": topology if _SLICES.value == 1 else f"{_SLICES.value} x {topology}",
            "slices": _SLICES.value,
            "chips": len(devices),
            "mesh": dict(mesh.shape),
            "batch_size": batch_size,
            "parameters": program.parameters,
            "model_flops": program.model_flops,
            "lower_s": lowered - started,
            "effort": effort,
            "versions": _versions(),
        }
        try:
            compiled = _compile(program.lowered, effort)
        except jax.errors.JaxRuntimeError as error:
            if out_of_memory(error) is None:
                raise
            raise report.OutOfMemory(known, str(error)) from error
        done = time.monotonic()
    return report.Report(
        **known,
        compile_s=done - lowered,
        **report.measure(compiled, chip, len(devices), program.model_flops, _SLICES.value),
    )


def _compile(lowered: jax.stages.Lowered, effort: float | None) -> jax.stages.Compiled:
    """Compiles for a TPU with this effort, or (None) for another platform."""
    if effort is None:
        return lowered.compile()
    # Without a TPU nothing can be read from a cache again; trying warns.
    jax.config.update("jax_enable_compilation_cache", False)
    options = {"exec_time_optimization_effort": effort}
    try:
        # Figures instead of an error where memory does not suffice: it is judged here.
        return lowered.compile(compiler_options=options | {"xla_tpu_no_crash_on_oom": True})
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile(compiler_options=options)  # of a libtpu that does not know it


def _lower(config: Config, name: str, mesh: jax.sharding.Mesh) -> tuple[lower.Program, int]:
    if _WHAT.value == "train":
        batch_size = _BATCH_SIZE.value or config.runs[name].batch_size
        config = _with_batch_size(config, name, batch_size)
        return lower.lower_training(config, name, mesh), batch_size
    batch_size = _BATCH_SIZE.value or 8 * mesh.devices.size
    return lower.lower_sampling(config, name, mesh, batch_size), batch_size


def _with_batch_size(config: Config, name: str, batch_size: int) -> Config:
    run = dataclasses.replace(config.runs[name], batch_size=batch_size)
    return dataclasses.replace(config, runs=dict(config.runs) | {name: run})


def _versions() -> dict[str, str]:
    found = {"jax": jax.__version__}
    try:
        return found | {"libtpu": metadata.version("libtpu")}
    except metadata.PackageNotFoundError:
        return found


if __name__ == "__main__":
    run()

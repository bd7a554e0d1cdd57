"""Compiles a training step or a sampling run for absent hardware, and says what it needs.

  python -m contextdiff_jax.compile --config=configs/laion.py --run=base --topology=v5e:16x16 \
      --config.mesh.fsdp=16 --config.runs.base.batch_size=2048
  python -m contextdiff_jax.compile --config=configs/video_editing.py:tune_a_video --what=train \
      --topology=v5e:2x4 --config.clip.count=8

The config of an edit has no runs: its programs are the tuning step (--what=train), the inversion
(invert) and the drawing of a whole edit (sample), at the sizes of --model.
A TPU topology needs libtpu (pip install libtpu), not a TPU; h100:1 and other GPUs of one host need
jax[cuda12], not a GPU; --topology=cpu:8 takes seconds. Prints memory per chip, operations, the
roofline's step time, collectives; --output writes them as JSON.
Exit codes: 0 it fits, or the chip's memory is unknown; 1 it does not fit; 2 refused; 70 failed.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from absl import flags
from etils import epath

from contextdiff_jax import command_line, entry
from contextdiff_jax.compilation import lower, lower_edit, report, shapes
from contextdiff_jax.config import Config, from_config_dict
from contextdiff_jax.generation.editing_config import read_editing_config
from contextdiff_jax.parallel import absent_gpus, topologies
from contextdiff_jax.parallel.device_errors import out_of_memory
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.runs.device_memory import knobs
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.system import notices

EDITED = "stable-diffusion-v1-5"

_CONFIG = command_line.define_config("Config file, as main's or edit's.")
_RUN = flags.DEFINE_string("run", None, "Run of the pipeline; by default its only or first one.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"Kind of chip and shape of a slice: {', '.join(topologies.EXAMPLES)}."
)
_SLICES = flags.DEFINE_integer("slices", 1, "Number of such slices, joined by the data axis.")
_WHAT = flags.DEFINE_enum(
    "what",
    "train",
    ["train", "sample", "invert"],
    "Training step or sampling run; of an edit its tuning step, drawing or inversion.",
)
_MODEL = flags.DEFINE_enum(
    "model", None, list(lower_edit.MODELS), f"Sizes that an edit is of; by default {EDITED}."
)
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


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is compiled. name: of the config. run: of its pipeline, or the model that is edited.

    lower: returns the program for a mesh and its batch size; compute dtype "auto" is bfloat16 where
    the chip is known. knobs: see device_memory.knobs; of the mesh's sizes and the batch size.
    """

    name: str
    run: str
    mesh: MeshConfig
    lower: Callable[[jax.sharding.Mesh, topologies.Chip | None], tuple[lower.Program, int]]
    knobs: Callable[[dict[str, int], int], dict[str, str]]


def main() -> None:
    devices = shapes.devices(_TOPOLOGY.value, _SLICES.value)
    of_run = "runs" in _CONFIG.value
    asked = _asked_run(devices) if of_run else _asked_edit()
    if _OUTPUT.value:
        if epath.Path(_OUTPUT.value).is_dir():
            raise ValueError(f"--output={_OUTPUT.value}: is a folder, must be a file")
        entry.check_writable(epath.Path(_OUTPUT.value).parent, "output")
    notices.doing(f"compiling {'run ' if of_run else ''}{asked.run}")
    try:
        found = compile_report(asked, _TOPOLOGY.value, devices)
    except report.OutOfMemory as error:
        _write(error.figures)
        knob = asked.knobs(error.figures["mesh"], error.figures["batch_size"])
        raise DoesNotFit("\n".join([str(error), *knob.values()])) from error
    print(report.describe(found))
    _write(found.to_json())
    if found.fits is False:
        raise DoesNotFit(report.advice(found, asked.knobs(found.mesh, found.batch_size)))


def _asked_run(devices: list[jax.Device]) -> Asked:
    """Returns the run that the flags ask for."""
    values = _CONFIG.value
    values.data_path = values.data_path or "no data is read"
    config = from_config_dict(values)
    name, what = _RUN.value or config.pipeline[0], _WHAT.value
    for flag, value in (("model", _MODEL.value), ("what", what if what == "invert" else None)):
        if value is not None:
            raise ValueError(f"--{flag}={value}: only with the config of an edit")
    if not 0 <= _BATCH_SIZE.value < 2**31:
        raise ValueError(
            f"--batch_size={_BATCH_SIZE.value}: must be at least 1 and below 2^31, or 0 for its own"
        )
    validate(config, name, files=False, platform=devices[0].platform)

    def lowered(mesh: jax.sharding.Mesh, chip: topologies.Chip | None):
        own = dataclasses.replace(config, dtype=_dtype(config.dtype, chip))
        return _lower(own, name, mesh)

    def turned(mesh: dict[str, int], batch_size: int) -> dict[str, str]:
        return knobs(config, name, what, mesh, batch_size, _SLICES.value)

    return Asked(config.name, name, config.mesh, lowered, turned)


def _asked_edit() -> Asked:
    """Returns the program of an edit that the flags ask for."""
    config, model = read_editing_config(_CONFIG.value), _MODEL.value or EDITED
    for flag, value in (("run", _RUN.value), ("batch_size", _BATCH_SIZE.value)):
        if value:
            raise ValueError(f"--{flag}={value}: not with the config of an edit, which has no runs")

    def lowered(mesh: jax.sharding.Mesh, chip: topologies.Chip | None):
        own = dataclasses.replace(config, dtype=_dtype(config.dtype, chip))
        return lower_edit.lower_edit(own, model, _WHAT.value, mesh), config.clip.count

    return Asked(config.name, model, MeshConfig(), lowered, lower_edit.knobs)


def _dtype(asked: str, chip: topologies.Chip | None) -> str:
    """Returns the compute dtype: "auto" is bfloat16 on a chip, as there."""
    return "bfloat16" if chip is not None and asked == "auto" else asked


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


def _write(figures: dict[str, Any]) -> None:
    if _OUTPUT.value:
        epath.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=1) + "\n")


def compile_report(asked: Asked, topology: str, devices: list[jax.Device]) -> report.Report:
    """Lowers and compiles; returns the figures. Raises report.OutOfMemory where there are none."""
    chip = topologies.chip(topology)
    mesh = make_mesh(asked.mesh, devices)
    gpu = topologies.is_gpu(topology)
    effort = None if chip is None or gpu else _EFFORT.value
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        started = time.monotonic()
        program, batch_size = asked.lower(mesh, chip)
        lowered = time.monotonic()
        print("\n".join(program.memory), flush=True)
        known = {
            "config": asked.name,
            "run": asked.run,
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
            compiled = _compile(program.lowered, effort, gpu)
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


def _compile(lowered: jax.stages.Lowered, effort: float | None, gpu: bool) -> jax.stages.Compiled:
    """Compiles for a TPU with this effort, for a GPU, or else for this machine."""
    if effort is None and not gpu:
        return lowered.compile()
    # Without the chip nothing can be read from a cache again; trying warns.
    jax.config.update("jax_enable_compilation_cache", False)
    if gpu:
        return lowered.compile(compiler_options=absent_gpus.COMPILER_OPTIONS)
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
    for name in ("libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


if __name__ == "__main__":
    run()

"""Runs of several processes: joining them, what they decide together, arrays across them.

Every function here also serves a run of one process, and then neither communicates nor waits.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from contextdiff_jax.parallel import abort_reasons
from contextdiff_jax.parallel.mesh import BATCH_AXES
from contextdiff_jax.system import notices

try:  # for the names of who is missing; see _naming_who_is_missing
    from jax._src import distributed as jax_distributed
except ImportError:
    jax_distributed = None  # type: ignore[assignment]

MODES = ("auto", "none", "explicit")
_SHUTDOWN_TIMEOUT_S = 30
_ANSWER_TIMEOUT_S = 5  # for the service to tell its clients who is missing


@dataclasses.dataclass(frozen=True)
class Processes:
    """How this process finds the others.

    mode: "explicit" joins as the next three say; "auto" does so where they are given, else joins
        the cluster that JAX detects (Cloud TPU, GKE, SLURM, Open MPI), else is alone; "none" is
        alone.
    coordinator: HOST:PORT on which process 0 listens and which all others reach.
    num_processes, process_id: how many there are, and which one this is, from 0.
    join_timeout_s: seconds until every process must have joined.
    heartbeat_timeout_s: seconds without a sign of life after which a process counts as lost.
    """

    mode: str = "auto"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    join_timeout_s: int = 300
    heartbeat_timeout_s: int = 100

    @property
    def explicit(self) -> bool:
        """Whether the flags, not the environment, say who this process is."""
        return self.mode == "explicit" or (self.mode == "auto" and bool(self._given()))

    def _given(self) -> list[str]:
        names = ("coordinator", "num_processes", "process_id")
        return [name for name in names if getattr(self, name) is not None]

    def validate(self) -> None:
        """Raises ValueError in one sentence for flags that do not go together."""
        given = self._given()
        if self.mode == "none" and given:
            raise ValueError(f"--distributed=none runs one process: --{given[0]} must not be given")
        for name in ("num_processes", "join_timeout_s", "heartbeat_timeout_s"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name}={value}: must be at least 1")
        if not self.explicit:
            return
        missing = [n for n in ("coordinator", "num_processes", "process_id") if n not in given]
        if missing:
            raise ValueError(
                f"--{missing[0]} is missing: --coordinator, --num_processes and --process_id are "
                "given together"
            )
        if not re.fullmatch(r"(\[.+\]|[^:]+):\d{1,5}", self.coordinator):
            raise ValueError(
                f"--coordinator={self.coordinator}: must be HOST:PORT, the same for every process"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"--process_id={self.process_id}: must be in 0..{self.num_processes - 1}, "
                f"with --num_processes={self.num_processes}"
            )


def start(processes: Processes) -> None:
    """Joins the other processes, if there are any. Must come before any use of devices.

    When a process does not join in time or is lost later, JAX ends this one (SIGABRT), and
    abort_reasons.py adds a sentence that says which it was; likewise, also for one process, where
    C++ is refused memory. A process that ends by itself waits up to 30 s for the others to end too;
    then they are ended in the same way.

    Raises ValueError where the flags do not go together.
    """
    processes.validate()
    notices.stderr = abort_reasons.attach(processes.join_timeout_s)
    if processes.mode == "none" or (processes.explicit and processes.num_processes == 1):
        return
    if not processes.explicit and os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would give a lone task one of the node's GPUs
    # JAX's own listener for SIGTERM would take the signal from system/interruption.py.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {}
    if processes.explicit:
        arguments = {
            "coordinator_address": processes.coordinator,
            "num_processes": processes.num_processes,
            "process_id": processes.process_id,
            "cluster_detection_method": "deactivate",
        }
    try:
        with _naming_who_is_missing(processes.join_timeout_s):
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=processes.join_timeout_s + _ANSWER_TIMEOUT_S,
                heartbeat_timeout_seconds=processes.heartbeat_timeout_s,
                shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
            )
    except ValueError as error:
        # How JAX says that it found no cluster; nothing has been set up then.
        if processes.explicit or "coordinator_address" not in str(error):
            raise
        _check_alone()
        return
    logging.info(
        "process %d of %d: %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


@contextlib.contextmanager
def _naming_who_is_missing(join_timeout_s: int) -> Iterator[None]:
    """Within, the coordination service gives up joining before its clients do.

    Its answer then names who is missing; a client's own time-out names nobody. jax.distributed
    has no argument for it. Where JAX has it no more or jaxlib does not take it, the names are
    missing, nothing else.
    """
    jaxlib = getattr(jax_distributed, "_jax", None)
    name = "get_distributed_runtime_service"
    make_service = getattr(jaxlib, name, None)
    if "cluster_register_timeout" not in (getattr(make_service, "__doc__", None) or ""):
        yield
        return
    setattr(jaxlib, name, functools.partial(make_service, cluster_register_timeout=join_timeout_s))
    try:
        yield
    finally:
        setattr(jaxlib, name, make_service)


def _check_alone() -> None:
    """Raises ValueError in a pod that has siblings which JAX cannot find."""
    index = os.environ.get("JOB_COMPLETION_INDEX", "0")
    if index != "0":
        raise ValueError(
            f"this is pod {index} of an indexed Job, but JAX found no cluster: install jax[k8s], "
            "or give --coordinator, --num_processes and --process_id, or --distributed=none"
        )


def is_main() -> bool:
    """Whether this is process 0, which alone writes what all share."""
    return jax.process_index() == 0


def from_main(value: bool) -> bool:
    """Returns process 0's value on every process; all must call it."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def first_where(flag: bool) -> int | None:
    """Returns the lowest process whose flag is set, or None; all must call it."""
    if jax.process_count() == 1:
        return 0 if flag else None
    flags = multihost_utils.process_allgather(np.int32(flag)).reshape(-1)
    return int(np.argmax(flags)) if flags.any() else None


def check_same(value: int, what: str) -> None:
    """Raises ValueError on every process where a number differs between them; all must call it.

    value: from 0 to 2**62 - 1. what: a sentence's begin that {} in it completes, e.g. "finds {}
    samples".
    """
    if jax.process_count() == 1:
        return
    halves = np.array(divmod(value, 2**31), np.int32)  # JAX would cut 64 bits to 32
    gathered = multihost_utils.process_allgather(halves).reshape(-1, 2)
    values = [int(high) * 2**31 + int(low) for high, low in gathered]
    other = next((index for index, found in enumerate(values) if found != values[0]), None)
    if other is not None:
        raise ValueError(
            f"process {other} {what.format(values[other])}, process 0 {what.format(values[0])}: "
            "must be the same for all"
        )


def wait_for_all(what: str) -> None:
    """Returns when every process has called this with the same `what`."""
    multihost_utils.sync_global_devices(what)


def place(tree: Any, shardings: Any) -> Any:
    """Puts a tree of arrays, the same on every process, on a mesh.

    shardings: one for all leaves, or a tree of them. Unlike jax.device_put, which compares every
    byte between processes, this communicates nothing for host arrays; each device gets its own
    part only.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place_leaf, tree, shardings)


def _place_leaf(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array):
        return _identity(sharding)(leaf)
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


@functools.cache
def _identity(sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=sharding)


def to_host(array: jax.Array) -> np.ndarray:
    """Returns a whole array, wherever its parts lie; all processes must call it."""
    return multihost_utils.process_allgather(array, tiled=True)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): this process reads part `index` of `count` equal parts of a batch.

    Processes whose devices hold the same examples (`tensor` lies across them) read the same part.
    Raises ValueError where parts overlap without being the same.
    """
    processes = np.vectorize(lambda device: device.process_index)(mesh.devices)
    axes = [mesh.axis_names.index(axis) for axis in BATCH_AXES]
    processes = np.moveaxis(processes, axes, range(len(axes)))
    return part_of(processes.reshape(-1, *processes.shape[len(axes) :]), jax.process_index())


def part_of(processes: np.ndarray, process: int) -> tuple[int, int]:
    """Returns `batch_part` of `process`; processes[r] are those that hold row r of a batch."""
    held = {p: tuple(np.flatnonzero([p in row for row in processes])) for p in np.unique(processes)}
    parts = sorted(set(held.values()))
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) != len(processes):
        raise ValueError(
            f"{len(held)} processes would hold overlapping parts of a batch: the mesh's `tensor` "
            "must divide, or be a multiple of, the devices of a process"
        )
    return parts.index(held[process]), len(parts)

"""Chips and slices that are not there: devices to compile for, and what a chip can do.

TPU devices come from libtpu's compiler (`pip install libtpu`), which needs no TPU, and GPUs of one
host from JAX's CUDA plugin (absent_gpus.py). `cpu:8` is this machine's CPU as eight devices.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax

from contextdiff_jax.parallel import absent_gpus


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peak figures of one chip (Google Cloud TPU documentation; NVIDIA's data sheets).

    flops: bfloat16 operations per second, of dense matrices. hbm: bytes. hbm_bandwidth: bytes per
    second. ici_bandwidth: bytes per second that one chip sends to its neighbours, all links
    together (half of the bidirectional figure). axes: numbers of dimensions of its slices.
    dcn_bandwidth: bytes per second to other slices, a chip's share of its host's; None where none
    is published. usable: share of HBM; the rest is the runtime's, and room for fragments.
    """

    flops: float
    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float
    axes: int
    dcn_bandwidth: float | None
    usable: float = 0.875


GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9, 3, None),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 2, 25e9 / 8),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 3, 50e9 / 8),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9, 2, 100e9 / 8),
}
# JAX takes three quarters of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPUS = {
    name: Chip(gpu.flops, gpu.memory, gpu.bandwidth, gpu.nvlink, 1, None, usable=0.75)
    for name, gpu in absent_gpus.GPUS.items()
}
_KNOWN = CHIPS | GPUS
EXAMPLES = ("v5e:16x16", "v5p:2x4x4", "v6e:8x8", "v4:4x4x4", "h100:8", "cpu:8")


def chip(topology: str) -> Chip | None:
    """Returns the figures of a topology's chip, or None for the CPU.

    Raises ValueError for a topology that is not of the form FAMILY:AxB.
    """
    family, _, shape = topology.partition(":")
    axes = _KNOWN[family].axes if family in _KNOWN else 1
    form = "x".join(["[1-9][0-9]*"] * axes)
    if family not in (*_KNOWN, "cpu") or not re.fullmatch(form, shape):
        raise ValueError(
            f"topology {topology!r}: must be one of {', '.join(CHIPS)} with the shape of a slice, "
            f"or {', '.join(GPUS)} or cpu with a number, e.g. {', '.join(EXAMPLES)}"
        )
    return _KNOWN.get(family)


def is_gpu(topology: str) -> bool:
    """Returns whether a topology is of GPUs."""
    return topology.partition(":")[0] in GPUS


def count(topology: str) -> int:
    """Returns the number of a topology's chips. Raises ValueError as `chip` does."""
    chip(topology)
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Returns the devices of `slices` slices of this topology; nothing can run on them.

    Call it before anything else uses JAX's devices.

    Raises ValueError for a topology that libtpu does not know, for more GPUs than a host has, or
    without the compiler.
    """
    known = chip(topology)
    if known is None:
        jax.config.update("jax_num_cpu_devices", count(topology) * slices)
        return jax.devices("cpu")
    if is_gpu(topology):
        if slices > 1:
            raise ValueError(f"topology {topology!r} with {slices} slices: GPUs are of one host")
        return absent_gpus.devices(topology.partition(":")[0], count(topology))
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"topology {topology!r} needs the TPU's compiler: pip install libtpu")
    # Without these libtpu looks for the machine it would be on, and complains.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nobody uses a chip here
    from jax.experimental import topologies

    # A v4's two cores are one device, as on the chip itself; without it libtpu makes them two.
    cores = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **cores
        )
    except RuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        raise ValueError(
            f"topology {topology!r} is not known to libtpu, e.g. {', '.join(EXAMPLES)} are: {error}"
        ) from error
    return list(found.devices)

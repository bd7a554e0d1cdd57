"""The device mesh: axes (data, fsdp, tensor) over all devices of all processes."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from contextdiff_jax.networks import axes

BATCH_AXES = axes.BATCH_MESH_AXES
AXES = (*BATCH_AXES, axes.HEADS_MESH_AXIS)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh, axes in this order. One axis may be -1: it takes the devices that are left.

    data: replicas, each with its own part of the batch.
    fsdp: parameters, optimiser state and batch are split along this axis.
    tensor: heads and hidden features are split along this axis.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh with axes (data, fsdp, tensor) over `devices` (all devices by default).

    Raises ValueError, naming the axis and what would fit, when the sizes do not multiply to the
    number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dataclasses.asdict(config)
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis} = {size}: must be a positive number, or -1 for the rest")
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ValueError(f"mesh.{free[1]} = -1: only one axis may be -1, {free[0]} is already")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    count = len(devices)
    if count % fixed or (not free and fixed != count):
        written = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise ValueError(
            f"mesh ({written}) does not fill the {count} devices: {_what_fits(sizes, count)}"
        )
    if free:
        sizes[free[0]] = count // fixed
    shape = tuple(sizes[axis] for axis in AXES)
    return Mesh(_ordered(shape, devices), AXES)


def _what_fits(sizes: dict[str, int], count: int) -> str:
    """Says which one axis to change, and to what; or what must hold where one is not enough."""
    fixed = {axis: size for axis, size in sizes.items() if size != -1}
    ways = []
    for axis, size in fixed.items():
        others = math.prod(fixed.values()) // size
        if count % others == 0:
            most = count // others
            if len(fixed) < len(sizes):
                ways.append(f"mesh.{axis} = {size}: {_either(_divisors(most))} would fit")
            else:  # without a free axis the mesh must be filled to the last device
                ways.append(f"mesh.{axis} = {most} would fit")
    if ways:
        return ", or ".join(ways)
    product = f"{' x '.join(f'mesh.{axis}' for axis in fixed)} = {math.prod(fixed.values())}"
    if len(fixed) < len(sizes):
        return f"{product}: {_either(_divisors(count))} would fit"
    return f"{product}: {count} would fit, e.g. mesh.data = -1 and the others 1"


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _either(sizes: list[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} or {last}" if others else last


def _ordered(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Neighbours of fsdp and tensor are neighbours in the network; slices differ in data only."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if shape[0] % slices:
            raise ValueError(
                f"mesh.data = {shape[0]}: must be a multiple of the {slices} slices, between which "
                f"only gradients should travel; mesh.fsdp x mesh.tensor = {shape[1] * shape[2]}: "
                f"{_either(_divisors(len(devices) // slices))} would fit"
            )
        within = (shape[0] // slices, *shape[1:])
        return mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    if devices[0].platform == "tpu":
        # fsdp = 8 on a 16 x 16 slice takes half a row.
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    return np.asarray(devices, dtype=object).reshape(shape)


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns `function`, traced with `mesh` as the ambient mesh; meant to be jitted.

    Kernels inside it, which XLA cannot split by itself, learn from that how they are split.
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **kwargs)

    return traced

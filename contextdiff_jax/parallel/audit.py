"""What each device will hold, by group; refuses what cannot fit, and large copies on a split mesh.

All of it reads shapes and shardings, so it can be asked before anything is placed.
"""

import math
import os
from typing import Any

import jax
import numpy as np

from contextdiff_jax.parallel import topologies

LARGE = 32 * 2**20  # bytes of one array above which replication on a sharded mesh is a mistake
# Of a device's memory, what is kept on it from step to step may take this much. The rest is the
# least that a step needs: gradients are an eighth of parameters, EMA and two moments even in
# bfloat16. A copy of a small model on every device is far below, and is fine.
KEPT = 0.9
# Bytes of memory where a device does not say.
UNKNOWN_MEMORY = max(chip.hbm for chip in topologies.CHIPS.values())

Groups = dict[str, tuple[Any, Any]]  # {group: (tree of arrays or shapes, their shardings)}


def bytes_per_device(abstract: Any, shardings: Any) -> int:
    """Returns the bytes one device holds of a tree of ShapeDtypeStructs under these shardings."""
    return sum(_part(leaf, sharding) for _, leaf, sharding in _leaves(abstract, shardings))


def report(groups: Groups) -> list[str]:
    """Returns a line for each group: its bytes per device, and in all."""
    lines = []
    for group, (abstract, shardings) in groups.items():
        per_device = bytes_per_device(abstract, shardings)
        total = sum(_bytes(leaf) for leaf in jax.tree.leaves(abstract))
        lines.append(
            f"{group:<12} {per_device / 2**20:>10.1f} MiB per device of {total / 2**20:.1f}"
        )
    return lines


def audit(groups: Groups, advice: str | None = None) -> list[str]:
    """Returns the report of what devices keep from step to step: parameters and the like.

    advice: what to do where it cannot fit; by default which mesh.fsdp would split it enough.

    Raises ValueError as audit_copies does, and naming the bytes when all that one device keeps
    exceeds KEPT of its memory.
    """
    lines = audit_copies(groups)
    _check_memory(groups, advice)
    return lines


def audit_copies(groups: Groups) -> list[str]:
    """Returns the report whatever memory devices have.

    Raises ValueError naming the arrays when an array over LARGE bytes is whole on every device
    of a mesh whose fsdp or tensor axis could split it.
    """
    whole = [
        f"{group}{jax.tree_util.keystr(path)} {leaf.shape}"
        for group, trees in groups.items()
        for path, leaf, sharding in _leaves(*trees)
        if sharding.mesh.shape["fsdp"] * sharding.mesh.shape["tensor"] > 1
        and sharding.is_fully_replicated
        and _bytes(leaf) > LARGE
    ]
    if whole:
        raise ValueError(
            f"{len(whole)} large arrays would be whole on every device: {', '.join(whole[:5])}; "
            "give their axes names that parallel/sharding.py maps to a mesh axis"
        )
    return report(groups)


def _check_memory(groups: Groups, advice: str | None) -> None:
    parts = {group: bytes_per_device(*trees) for group, trees in groups.items()}
    kept = sum(parts.values())
    shardings = [s for _, of_group in groups.values() for s in jax.tree.leaves(of_group)]
    if not shardings:
        return
    mesh = shardings[0].mesh
    memory = _memory(mesh)
    if kept <= KEPT * memory:
        return
    whole = sum(
        _part(leaf, sharding)
        for trees in groups.values()
        for _, leaf, sharding in _leaves(*trees)
        if sharding.is_fully_replicated
    )
    listed = ", ".join(f"{group} {_gib(part)}" for group, part in parts.items())
    raise ValueError(
        f"each of {mesh.size} devices would keep {_gib(kept)} GiB ({listed}), {_gib(whole)} of it "
        f"whole on every device: more than {KEPT} of the {_gib(memory)} GiB it has; "
        + (advice or _what_splits_it(mesh, kept / (KEPT * memory)))
    )


def _what_splits_it(mesh: jax.sharding.Mesh, excess: float) -> str:
    """Says which mesh.fsdp would bring `excess`, a factor above 1, below 1."""
    now, most = mesh.shape["fsdp"], mesh.size // mesh.shape["tensor"]
    for size in range(math.ceil(now * excess), most + 1):
        if most % size == 0:
            return f"mesh.fsdp = {now}: at least {size} is needed to split it"
    return (
        f"mesh.fsdp = {now}: at least {math.ceil(now * excess)} is needed to split it: take more "
        "devices, or a smaller network"
    )


def _memory(mesh: jax.sharding.Mesh) -> int:
    """Returns the bytes that a program can have of one device; a CPU's share the machine's."""
    device = mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0]
    try:
        stats = device.memory_stats()
    except jax.errors.JaxRuntimeError:  # not every platform's plug-in counts
        stats = None
    if stats and stats.get("bytes_limit"):
        return stats["bytes_limit"]
    host = _host_memory() if device.platform == "cpu" else None
    return UNKNOWN_MEMORY if host is None else host // max(len(mesh.local_devices), 1)


def _host_memory() -> int | None:
    """Returns the machine's bytes of memory where the system tells."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _leaves(
    abstract: Any, shardings: Any
) -> list[tuple[jax.tree_util.KeyPath, Any, jax.sharding.NamedSharding]]:
    return [
        (path, leaf, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(abstract), jax.tree.leaves(shardings), strict=True
        )
    ]


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=np.int64)) * jax.numpy.dtype(leaf.dtype).itemsize


def _part(leaf: Any, sharding: jax.sharding.Sharding) -> int:
    part = np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64)
    return int(part) * jax.numpy.dtype(leaf.dtype).itemsize


def _gib(count: float) -> str:
    return f"{count / 2**30:.3g}"

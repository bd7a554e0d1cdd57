"""What each device will hold, by group; refuses large parameters left whole on a sharded mesh."""

from typing import Any

import jax
import numpy as np

LARGE = 32 * 2**20  # bytes of one array above which replication on a sharded mesh is a mistake


def bytes_per_device(abstract: Any, shardings: Any) -> int:
    """Returns the bytes one device holds of a tree of ShapeDtypeStructs under these shardings."""
    sizes = jax.tree.map(
        lambda leaf, sharding: (
            int(np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64))
            * jax.numpy.dtype(leaf.dtype).itemsize
        ),
        abstract,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def audit(groups: dict[str, tuple[Any, Any]]) -> list[str]:
    """Returns report lines for {group: (abstract tree, shardings)}.

    Raises ValueError naming the arrays when an array over LARGE bytes is whole on every device
    of a mesh whose fsdp or tensor axis could split it.
    """
    lines, whole = [], []
    for group, (abstract, shardings) in groups.items():
        per_device = bytes_per_device(abstract, shardings)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
        lines.append(
            f"{group:<12} {per_device / 2**20:>10.1f} MiB per device of {total / 2**20:.1f}"
        )
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(abstract), jax.tree.leaves(shardings), strict=True
        ):
            split = sharding.mesh.shape["fsdp"] * sharding.mesh.shape["tensor"]
            large = leaf.size * leaf.dtype.itemsize > LARGE
            if split > 1 and large and sharding.is_fully_replicated:
                whole.append(f"{group}{jax.tree_util.keystr(path)} {leaf.shape}")
    if whole:
        raise ValueError(
            f"{len(whole)} large arrays would be whole on every device: {', '.join(whole[:5])}; "
            "give their axes names that parallel/sharding.py maps to a mesh axis"
        )
    return lines

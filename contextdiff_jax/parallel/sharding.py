"""From the logical axis names on parameters to shardings on the mesh, by one table."""

from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.networks import axes
from contextdiff_jax.parallel.mesh import BATCH_AXES

# Logical axis (networks/axes.py says what each means) -> mesh axis. A mesh axis is used once per
# array, the first match wins. Outputs of a layer go to `tensor`, its inputs to `fsdp`.
RULES: tuple[tuple[str, str | None], ...] = (
    *((name, axes.HEADS_MESH_AXIS) for name in axes.SPLIT_IN_USE),
    (axes.EMBED, "fsdp"),
    (axes.CONTEXT, "fsdp"),
    (axes.CONV_IN, "fsdp"),
    # Small or never split.
    (axes.PATCH, None),
    (axes.NORM, None),
    (axes.POSITION, None),
    (axes.LAYERS, None),
    (axes.RANK, None),
    (axes.KERNEL_HEIGHT, None),
    (axes.KERNEL_WIDTH, None),
    (axes.KERNEL_TIME, None),
)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over (data, fsdp); everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(boxed: Any, mesh: Mesh) -> Any:
    """Returns a NamedSharding per leaf of a tree with nn.LogicallyPartitioned boxes.

    An axis that its mesh axis does not divide stays whole (e.g. 3 image channels), so that any
    network fits any mesh; the audit shows what that costs.
    """
    logical = nn.get_partition_spec(boxed)
    specs = nn.logical_to_mesh(logical, RULES)
    return jax.tree.map(
        lambda leaf, spec: NamedSharding(mesh, _fitting(leaf.shape, spec, mesh)),
        nn.unbox(boxed),
        specs,
        is_leaf=lambda node: isinstance(node, PartitionSpec),
    )


def _fitting(shape: tuple[int, ...], spec: Any, mesh: Mesh) -> PartitionSpec:
    spec = spec if isinstance(spec, PartitionSpec) else PartitionSpec()
    axes = tuple(spec) + (None,) * (len(shape) - len(spec))
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for size, axis in zip(shape, axes, strict=True)
        )
    )


def like_params(tree: Any, params: Any, param_shardings: Any, mesh: Mesh) -> Any:
    """Shards what optimisers keep: sub-trees shaped like `params` as they are, the rest whole."""
    structure = jax.tree.structure(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]

    def matches(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def place(node: Any) -> Any:
        if not matches(node):
            return replicated(mesh)
        return jax.tree.map(
            lambda leaf, shape, sharding: sharding if leaf.shape == shape else replicated(mesh),
            node,
            jax.tree.unflatten(structure, shapes),
            param_shardings,
            is_leaf=lambda leaf: isinstance(leaf, tuple),
        )

    return jax.tree.map(place, tree, is_leaf=matches)

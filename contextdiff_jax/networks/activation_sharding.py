"""How activations and kernels are split in use, on the ambient mesh (parallel.mesh.on_mesh)."""

import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from contextdiff_jax.networks import axes


def over_batch(x: jax.Array) -> jax.Array:
    """Keeps x (B, ...) and its gradient split over the mesh's batch axes; the rest is XLA's choice.

    Without it the splitting of parameters over fsdp spreads to the features of activations, in
    gradients above all, and XLA reshards at great cost. Does nothing without an ambient mesh, or
    for a batch that does not divide (a network's init).
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in axes.BATCH_MESH_AXES if name in mesh.axis_names)
    if not names or x.shape[0] % math.prod(mesh.shape[name] for name in names):
        return x
    free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(names, *free)))


def gathered(kernel: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Returns a kernel with logical axis `names` as layers use it: whole along fsdp.

    That is what FSDP means, and XLA must not choose otherwise: on meshes with data, fsdp and
    tensor at once, jaxlib 0.10.2 then computes wrong gradients of convolutions
    (tests/tasks/test_meshes.py finds them). The kernel's own gradient is split like the kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axes.HEADS_MESH_AXIS not in mesh.axis_names:
        return kernel
    split = [
        axes.HEADS_MESH_AXIS
        if name in axes.SPLIT_IN_USE and size % mesh.shape[axes.HEADS_MESH_AXIS] == 0
        else None
        for name, size in zip(names, kernel.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec(*split)))

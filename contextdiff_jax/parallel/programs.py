"""The programs of a mesh: jitted with it as the ambient mesh, by the options its platform wants."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from contextdiff_jax.parallel.mesh import on_mesh


def jit_on_mesh(
    function: Callable[..., Any], mesh: Mesh, *, runs_once: bool = False, **options: Any
) -> jax.stages.Wrapped:
    """Returns jax.jit(function, **options), traced and compiled for the devices of `mesh`.

    runs_once: on CPUs it is compiled sooner instead of running faster. Initializing a small U-Net
    compiles in half the time.
    """
    platform = mesh.devices.flat[0].platform
    wanted = compiler_options(platform)
    if runs_once and platform == "cpu":
        wanted = {**(wanted or {}), "xla_backend_optimization_level": 0}
    return jax.jit(on_mesh(function, mesh), compiler_options=wanted, **options)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any] | None:
    """Returns what XLA is told for a platform, beside XLA_FLAGS; None for nothing.

    On CPUs jaxlib 0.10 hands convolutions to YNNPACK, with which a U-Net trains 1.2 times slower
    than with Eigen (two cores with AVX2, benchmarks/unet_vs_diffusers). Matrix products stay there,
    and reductions go there too, which XLA leaves to scalar loops: the gradients of the quickstart's
    base take 0.88 of the time (two cores with AVX-512).
    """
    if platform != "cpu":
        return None
    for kinds in (("DOT", "REDUCE"), ("DOT",)):
        names = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
        options = {"xla_cpu_experimental_ynn_fusion_type": names}
        try:
            jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:  # an XLA without this experimental option, or value
            continue
        return options
    return None

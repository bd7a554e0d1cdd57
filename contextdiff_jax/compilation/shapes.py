"""Shapes of TPU slices that Google Cloud offers; libtpu compiles for all of them."""

import jax

from contextdiff_jax.parallel import topologies

_TORUS_2D = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_TORUS_3D = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    *("4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
)
# Google Cloud's documentation of each generation, without the slices of less than a host of 2x2.
OFFERED = {
    "v4": _TORUS_3D,
    "v5e": _TORUS_2D,
    "v5p": (*_TORUS_3D, "16x16x16", "16x16x24"),
    "v6e": _TORUS_2D,
}


_MOST_DEVICES = 2**16


def devices(topology: str, slices: int) -> list[jax.Device]:
    """Returns the devices of `slices` slices of this topology, as topologies.devices does.

    Raises ValueError, which lists the shapes of the family, or of all, for an unknown topology.
    """
    if slices < 1:
        raise ValueError(f"--slices={slices}: must be at least 1")
    try:
        if topologies.count(topology) * slices <= _MOST_DEVICES:
            return topologies.devices(topology, slices)
    except ValueError as error:
        family, _, shape = topology.partition(":")
        if shape in OFFERED.get(family, ()) or topologies.is_gpu(topology):
            raise  # without the compiler, or more than a host has
        families = [family] if family in OFFERED else list(OFFERED)
        listed = "; ".join(f"{name}:{', '.join(OFFERED[name])}" for name in families)
        raise ValueError(
            f"{error}. Slices on offer: {listed}. libtpu knows others, too: any AxB of v5e and "
            "v6e, any AxBxC of v4 and v5p, with A and B even"
        ) from error
    raise ValueError(
        f"--topology={topology} --slices={slices}: must be at most {_MOST_DEVICES} devices"
    )

"""The C allocator's settings for training on CPU."""

import ctypes
import importlib.util
import os

# glibc, malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets the process keep and reuse what it frees, where JAX will compute on the CPU with glibc.

    Every step frees large buffers and asks for them again; by default glibc returns them to the
    system each time, and the next step pays for clearing the pages. Blocks that outgrow a thread's
    arena (64 MiB) are returned all the same. One arena for all threads would keep them too, but the
    compiler leaves it in pieces, and searching it under one lock made the quickstart's step 1.5
    times slower.

    Call it before JAX's backend starts. Returns whether it was done.
    """
    accelerators = [name for name in ("libtpu", "jax_plugins") if importlib.util.find_spec(name)]
    if accelerators and os.environ.get("JAX_PLATFORMS") != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_TRIM_THRESHOLD, _NEVER), (_M_MMAP_MAX, 0))
    return all(mallopt(name, value) == 1 for name, value in settings)

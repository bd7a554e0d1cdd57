"""The allocator's settings, in a process of its own: they cannot be taken back."""

import subprocess
import sys

CODE = """
import ctypes, resource
from contextdiff_jax.host_memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def round_trip():
    block = libc.malloc(64 * 2**20)
    ctypes.memset(block, 1, 64 * 2**20)
    libc.free(block)

round_trip()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    round_trip()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(kept):
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(kept=kept)], check=True, capture_output=True, text=True
    )
    return int(run.stdout)


def test_freed_memory_is_reused_without_page_faults():
    assert faults(kept=True) < 100 < 10 * 100 < faults(kept=False)

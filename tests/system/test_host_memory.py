"""The allocator's settings, in a process of its own: they cannot be taken back."""

import subprocess
import sys

import pytest

CODE = """
import ctypes, resource, threading
from contextdiff_jax.system.host_memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def round_trip():
    block = libc.malloc({size})
    ctypes.memset(block, 1, {size})
    libc.free(block)

def count():
    round_trip()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        round_trip()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if {thread}:
    worker = threading.Thread(target=count)
    worker.start()
    worker.join()
else:
    count()
"""


def faults(**settings):
    run = subprocess.run(
        [sys.executable, "-c", CODE.format(**settings)], check=True, capture_output=True, text=True
    )
    return int(run.stdout)


@pytest.mark.parametrize(("thread", "size"), [(False, 64 * 2**20), (True, 16 * 2**20)])
def test_freed_memory_is_reused_without_page_faults(thread, size):
    kept, returned = (faults(kept=kept, thread=thread, size=size) for kept in (True, False))
    assert kept < 100 < 10 * 100 < returned

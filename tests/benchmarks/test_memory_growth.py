"""What memory_growth reads of a process's memory, and what it makes of it."""

import ctypes
import logging
import mmap

import numpy as np
import pytest

from benchmarks import memory_growth

SIZE = 64 << 20
NEAR = 8  # MB that other threads of the tests' process may take or free meanwhile


def test_the_heap_is_what_c_was_asked_for():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("this C library does not say what its heap holds (glibc 2.33 does)")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before, _ = memory_growth.heap()
    block = libc.malloc(SIZE)
    assert memory_growth.heap()[0] - before == pytest.approx(SIZE / 1e6, abs=NEAR)
    libc.free(block)
    assert memory_growth.heap()[0] == pytest.approx(before, abs=NEAR)


def test_resident_is_what_was_written_to():
    before = memory_growth.resident()
    with mmap.mmap(-1, SIZE) as pages:
        assert memory_growth.resident() == pytest.approx(before, abs=NEAR)
        for _ in range(SIZE >> 20):
            pages.write(b"\1" * (1 << 20))
        assert memory_growth.resident() - before == pytest.approx(SIZE / 1e6, abs=NEAR)


def test_steps_alone_are_sampled(tmp_path):
    sampler = memory_growth.Sampler(tmp_path / "memory.csv")
    logger = logging.Logger("training")
    logger.addHandler(sampler)
    logger.info("step %d: %s", 250, "loss 1")
    logger.info("50 %% done")
    header, *lines = (tmp_path / "memory.csv").read_text().splitlines()
    assert header.split(",") == list(memory_growth.FIELDS)
    assert [line.split(",")[0] for line in lines] == ["250"]


def test_growth_is_the_slope_of_each_quarter(tmp_path):
    """3 MB per 1,000 steps in the first half, none after; saves add 5 MB to every second step."""
    steps = np.arange(100, 8100, 100)
    resident = 500 + 3e-3 * np.minimum(steps, 4000) + 5 * (np.arange(len(steps)) % 2)
    lines = [f"{s},{r:.1f},{100 + s / 1e3},0" for s, r in zip(steps, resident, strict=True)]
    path = tmp_path / "memory.csv"
    path.write_text("\n".join([",".join(memory_growth.FIELDS), *lines]) + "\n")
    _, *rows = memory_growth.growth(path).splitlines()
    slopes = [[float(cell) for cell in row.split("|")[2:]] for row in rows]
    np.testing.assert_allclose(slopes, [[3, 1], [3, 1], [0, 1], [0, 1]], atol=0.6)

"""Fixtures of the benchmarks' tests."""

import os

import pytest


@pytest.fixture
def same_threads_afterwards():
    """Undoes what a benchmark's --threads sets for the whole process."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)

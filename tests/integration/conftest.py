"""Entry points run as a user runs them, and one finished toy pipeline for all tests to use."""

import fcntl
import functools
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run_module(module, *arguments, **environment):
    """Runs python -m contextdiff_jax.MODULE; returns the finished process with its output."""
    return subprocess.run(
        [sys.executable, "-m", f"contextdiff_jax.{module}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def run(forks):
    """As run_module, sooner: a fork, unless it has an environment of its own."""

    def either(module, *arguments, **environment):
        start = functools.partial(run_module, **environment) if environment else forks
        return start(module, *arguments)

    return either


@pytest.fixture(scope="session")
def quickstart(run, tmp_path_factory):
    """The workdir of a finished `configs/quickstart.py:test`, and what the command printed.

    Made once for all workers of xdist, so tests only read it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # theirs lie side by side
        folder = folder.parent
    workdir, printed = folder / "quickstart", folder / "quickstart.log"
    with (folder / "quickstart.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            done = run("main", "--config=configs/quickstart.py:test", f"--workdir={workdir}")
            assert done.returncode == 0, done.stderr
            printed.write_text(done.stderr)
    return workdir, printed.read_text()

"""Entry points run as a user runs them, and one finished toy pipeline for all tests to use."""

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
def run():
    return run_module


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The workdir of a finished `configs/quickstart.py:test`, and what the command printed."""
    workdir = tmp_path_factory.mktemp("quickstart")
    done = run_module("main", "--config=configs/quickstart.py:test", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr

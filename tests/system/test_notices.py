"""Notices to end while there is nothing to save: 75 from the imports on, whatever the thread does.

A stand-in for JAX, first on the path, says when it is imported and then does what a test asks.
"""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT

WAITS = "import time; print('here', flush=True); time.sleep(600)"
COMPUTES = """
    import hashlib
    print('here', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)  # minutes, in C, without the lock
"""
PROGRAMS = ("main", "sample", "evaluate", "export", "prepare", "compile")


@pytest.fixture
def begin(tmp_path):
    """Returns begin(code, program, **how): a process that has come to `code` in its imports."""
    begun = []

    def begin(code, program="main", **how):
        (tmp_path / "jax").mkdir()
        code = "\n".join(line.removeprefix("    ") for line in code.splitlines())
        (tmp_path / "jax/__init__.py").write_text(code)
        process = subprocess.Popen(
            [sys.executable, "-m", f"contextdiff_jax.{program}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **how,
        )
        begun.append(process)
        assert process.stdout.readline() == "here\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def assert_stopped(process):
    _, stderr = process.communicate()
    assert process.returncode == 75, stderr
    assert stderr == (
        "contextdiff_jax: stopped on request while loading the program; "
        "the same command starts that again\n"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_notice_during_the_imports_of_every_program(program, begin):
    process = begin(WAITS, program)
    process.send_signal(signal.SIGTERM)
    assert_stopped(process)


@pytest.mark.parametrize("notice", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_are_notices(notice, begin):
    process = begin(WAITS)
    process.send_signal(notice)
    assert_stopped(process)


def test_a_notice_is_heard_while_a_library_computes(begin):
    process = begin(COMPUTES)
    process.send_signal(signal.SIGTERM)
    assert_stopped(process)


def test_under_nohup_a_closed_terminal_is_none(begin):
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\n" + WAITS
    process = begin(code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGTERM)
    assert_stopped(process)


def test_a_notice_to_a_child_ends_the_child_alone(begin):
    process = begin("""
    import os, signal, time
    child = os.fork()
    if not child:
        time.sleep(600)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    print('here', flush=True)
    time.sleep(600)
    """)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert_stopped(process)


def test_a_library_of_others_hears_nothing():
    """Only our own programs take signals over, not a program that imports the package."""
    code = """if True:
    import signal, sys
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    sys.argv[0] = "-m"  # as for a program of others whose package imports ours
    import contextdiff_jax
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

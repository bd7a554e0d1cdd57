"""Processes whose memory the system limits, as by ulimit -v: they end, and say why last."""

import ctypes
import re
import signal
import subprocess
import sys

import pytest

SENTENCE = "contextdiff_jax: the memory of this machine, or a limit on it or on threads"

# A process may be above its limit: it keeps what it has and gets no more.
BEGIN = """if True:
    import ctypes, resource, threading
    from contextdiff_jax import entry
    from contextdiff_jax.parallel import distributed
    def command():
        entry.join(distributed.Processes("none"))
        threading.Thread(target=threading.Event().wait).start()
        {before}
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
        {code}
    entry.run(command)
"""
THREADS = """
        while True:
            threading.Thread(target=threading.Event().wait).start()
"""
LOAD = """
        new = ctypes.CDLL("libstdc++.so.6")._Znwm
        new.restype, new.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        new(16)
"""
CPP = """
        new(1 << 30)
"""
RUST = """
        class PanicException(BaseException):
            pass
        raise PanicException('no threads: ThreadPoolBuildError { kind: IOError(Os { code: 11 }) }')
"""


def ended(code, before="pass"):
    done = subprocess.run(
        [sys.executable, "-c", BEGIN.format(code=code, before=before)],
        capture_output=True,
        text=True,
    )
    if done.returncode == 127 and "thread-local data" in done.stderr:
        pytest.skip("the system's loader was refused memory first, and ended the process")
    return done


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (THREADS, "does not suffice: (can't start new thread|Python was refused some)"),
        ("bytearray(1 << 30)", "does not suffice: Python was refused some"),
        (RUST, "does not suffice: .*ThreadPoolBuildError"),
    ],
    ids=["threads", "python", "rust"],
)
def test_an_exception_ends_the_process_though_its_threads_never_do(code, reason):
    done = ended(code)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith(SENTENCE), done.stderr
    assert re.search(reason, last)


def test_an_abort_of_cpp_says_so_last():
    try:
        ctypes.CDLL("libstdc++.so.6")
    except OSError as error:
        pytest.skip(f"no C++ library to be refused memory in: {error}")
    done = ended(CPP, LOAD)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == -signal.SIGABRT and last.startswith(SENTENCE), done.stderr
    assert "bad_alloc" in last

"""Why a library ended this process, in one sentence after its own words.

When a process does not join or is lost, JAX's coordination service aborts the others from a
thread of its own, past any handler of Python's; so does C++ when memory cannot be had. So a child
copies this process's standard error through, and adds the sentence at the end. Only the standard
library: the child starts in milliseconds.
"""

import atexit
import contextlib
import os
import re
import signal
import subprocess
import sys

_KEPT = 1 << 16  # of the end of the output
_LAST_LINES = 20  # among which a library says why it aborts
_FLUSH_S = 2  # for the child to write the last lines
# What C++, LLVM and the system's thread library say when they are refused memory.
_NO_MEMORY = re.compile(
    r"bad_alloc|LLVM ERROR: out of memory|[Cc]annot allocate memory|failed to map segment"
    r"|Thread \S+ creation via pthread_create\(\) failed|RESOURCE_EXHAUSTED: Out of memory"
)
_ABORTED = "Fatal Python error: Aborted"  # Python's fault handler, which absl switches on
_AGAIN = "give every process the same command again, training goes on from the newest checkpoint"


def attach(join_timeout_s: int) -> int:
    """Starts the child between this process's standard error and what that was until now.

    Returns the file descriptor of what it was.
    """
    if sys.__stderr__ is None:  # closed by who started this process: nobody reads it
        return 2
    sys.stderr.flush()
    stderr = sys.__stderr__.fileno()
    before = os.dup(stderr)
    # -I: no packages of the user's, no environment. A session of its own: a Ctrl-C is not for it.
    child = subprocess.Popen(
        [sys.executable, "-I", __file__, str(join_timeout_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.dup2(child.stdin.fileno(), stderr)
    child.stdin.close()

    @atexit.register
    def detach() -> None:
        sys.stderr.flush()
        os.dup2(before, stderr)  # the last writer is gone: the child sees the end
        with contextlib.suppress(subprocess.TimeoutExpired):  # unless a child of ours writes still
            child.wait(_FLUSH_S)

    return before


def follow(join_timeout_s: int, source: int = 0, target: int = 2) -> None:
    """Copies one file descriptor to another until its end; then says what JAX's last words mean."""
    end = b""
    while block := os.read(source, _KEPT):
        end = (end + block)[-_KEPT:]
        _write(target, block)
    sentence = explain(end.decode(errors="replace"), join_timeout_s)
    if sentence:
        _write(target, f"contextdiff_jax: {sentence}\n".encode())


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def explain(output: str, join_timeout_s: int) -> str | None:
    """Returns one sentence for the end of an output, or None where no library aborted."""
    before, aborted, status = output.rpartition("JAX distributed service detected fatal errors")
    if not aborted:
        before, aborted, _ = output.rpartition(_ABORTED)
        return _of_this_process(before) if aborted else None
    status = status.partition("*** Check failure")[0].partition("absl::Status:")[2]
    late = _ids(r"timed out task names:([^\[]*)", status)
    if "Wait_for_all_tasks_to_register" in status:
        return (
            f"process {late} did not join within {join_timeout_s} s: check that it was started, "
            "with the same --coordinator and --num_processes, and that it reaches process 0"
        )
    if "RegisterTask" in status:
        return (
            f"could not join through process 0 within {join_timeout_s} s: check that it was "
            "started and that --coordinator reaches it; where it was, its log names who is missing"
        )
    unhealthy = _ids(r"stopped sending heartbeats\):([^\[]*)", status)
    if unhealthy:
        return f"process {unhealthy} was lost (its own log says why): {_AGAIN}"
    if "Failed to send RPC to coordination service" in status:
        return f"process 0 was lost (its own log says why): {_AGAIN}"
    if "Shutdown barrier" in status:
        first = _ids(r"first task at the barrier:(.*?)\. Some", status)
        return (
            f"process {first} ended (its own log says why), process {late} was still at work or "
            f"lost: {_AGAIN}"
        )
    return f"another process failed ({' '.join(status.split())}): {_AGAIN}"


def _of_this_process(output: str) -> str:
    """Returns the sentence for an abort that is not on account of another process."""
    lines = [line for line in output.splitlines() if line.strip()][-_LAST_LINES:]
    refused = next((line for line in reversed(lines) if _NO_MEMORY.search(line)), None)
    if refused is None:
        return "a library ended this process (SIGABRT); the lines above say why"
    return (
        f"the memory of this machine, or a limit on it (ulimit -v, a container's), does not "
        f"suffice: {refused.strip()}"
    )


def _ids(pattern: str, status: str) -> str:
    """Returns the process ids in a group of `pattern`: JAX writes 1, or ".../task:1"."""
    found = re.search(pattern, status, re.DOTALL)
    numbers = re.findall(r"(?:^|[\s,:])(\d+)(?=[\s,.]|$)", found[1]) if found else []
    return ", ".join(sorted(set(numbers), key=int))


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the process it speaks for, and outlives
    follow(int(sys.argv[1]))

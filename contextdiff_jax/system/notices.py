"""Notices to end (SIGTERM, SIGHUP, Ctrl-C) while there is nothing to save.

The process then ends at once, with the code that says "try again", and tells what it was at. While
there is something to save, system/interruption.py takes the notices over. Only the standard
library: this comes before the imports that take seconds.
"""

import contextlib
import os
import signal
import threading

EXIT_INTERRUPTED = 75  # "try again later" in sysexits.h: the same command resumes
# A terminal that is closed sends SIGHUP. Windows has none.
NOTICES = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)

stderr = 2  # what a process writes to that waits for nobody any more
_doing = "loading the program"
_ending = threading.Lock()
_held = threading.local()  # the mask of signals before a fork of this thread


def doing(what: str) -> None:
    """Says what this process is at from here on, e.g. "loading the encoders"."""
    global _doing
    _doing = what


def unheard(number: int) -> bool:
    """Whether this is SIGHUP and nohup started this process, so that it is ignored."""
    hangup = number == getattr(signal, "SIGHUP", None)
    return hangup and signal.getsignal(number) == signal.SIG_IGN


def end_at_once() -> None:
    """Lets notices end this process with EXIT_INTERRUPTED; to be called by its main thread.

    Python's own handlers wait until the main thread is back from a library, which a compiler may
    keep for minutes. So a thread ends the process.
    """
    for number in NOTICES:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), name="notices", daemon=True).start()
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_as_usual)


def _listen(reader: int) -> None:
    while number := os.read(reader, 1):  # of every signal that has a handler of Python's
        if number[0] in NOTICES:
            _end()


def _handle(number: int, frame: object) -> None:
    _end()


def _end() -> None:
    if _ending.acquire(blocking=False):
        with contextlib.suppress(OSError):  # nobody reads it any more
            sentence = f"stopped on request while {_doing}; the same command starts that again"
            os.write(stderr, f"contextdiff_jax: {sentence}\n".encode())
        os._exit(EXIT_INTERRUPTED)


def _hold() -> None:
    # A signal to a child that is just begun would still be told to its parent's pipe.
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _as_usual() -> None:
    """In a child: its parent's pipe is not for its signals."""
    signal.set_wakeup_fd(-1)
    for number in NOTICES:
        if signal.getsignal(number) == _handle:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    _release()

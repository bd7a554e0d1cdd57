"""Reading in processes of their own, because Python's lock is one per process."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

import grain
from absl import flags

from contextdiff_jax.data.example import DataError
from contextdiff_jax.system.notices import NOTICES

_READY_BATCHES = 1  # of each process, besides those being made and handed over
_LOST = "terminated unexpectedly with exit code"  # grain's message


def in_processes(batches: grain.IterDataset, count: int) -> grain.IterDataset:
    """Returns the same batches, in the same order, read by `count` processes in turns.

    An element of what `batches` read must be a whole batch.
    """
    if not flags.FLAGS.is_parsed():  # grain reads its own; a notebook or a test has no command line
        flags.FLAGS.mark_as_parsed()
    # Through pipes, not shared memory: a container mostly has 64 MB of it, and is killed beyond.
    through_pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    batches = grain.experimental.WithOptionsIterDataset(batches, through_pipes)
    options = grain.MultiprocessingOptions(num_workers=count, per_worker_buffer_size=_READY_BATCHES)
    return batches.mp_prefetch(options, worker_init_fn=_start)


@contextlib.contextmanager
def lost_process_is_data_error() -> Iterator[None]:
    """Turns grain's error of a process that is gone into a DataError."""
    try:
        yield
    except RuntimeError as error:
        if _LOST not in str(error):
            raise
        code = str(error).split(_LOST)[1].split(".")[0].strip()
        raise DataError(
            f"a process that reads data ended with exit code {code}; -9 is mostly a lack of "
            "memory: lower data.processes, each holds the index of the whole data set"
        ) from error


@contextlib.contextmanager
def notices_wait() -> Iterator[None]:
    """Within, this thread is not interrupted, nor ever the threads and processes it starts.

    A process ignores notices to end from _start on; until then one would kill it, and the run
    would end unsaved.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(number: int, count: int) -> None:
    """Leaves signals to the process that trains, and sees to it that none outlives it."""
    del number, count
    for notice in NOTICES:
        signal.signal(notice, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Rate and time left of long work, measured between two looks."""

import contextlib
import time
from collections.abc import Iterator

from absl import logging

_LOG_SECONDS = 20


class Progress:
    """Counts units of work from `start` to `total` and says how fast and how long still."""

    def __init__(self, start: int, total: int, clock=time.monotonic):
        self._clock = clock
        self._total = total
        self._last = (start, clock())

    def look(self, done: int) -> tuple[float, float]:
        """Returns (units per second since the last look, seconds left at that rate)."""
        then, since = self._last
        now = self._clock()
        rate = (done - then) / max(now - since, 1e-9)
        self._last = (done, now)
        return rate, (self._total - done) / rate if rate > 0 else float("inf")

    def restart(self, done: int) -> None:
        """Leaves all before (compiling, the first step) out of the next rate."""
        self._last = (done, self._clock())

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves what happens within (a save, a preview) out of the next rate."""
        began = self._clock()
        yield
        then, since = self._last
        self._last = (then, since + self._clock() - began)


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """Logs that long work of which nothing is heard begins, and at its end how long it took."""
    logging.info("%s ...", what)
    began = time.monotonic()
    yield
    logging.info("%s took %s", what, duration(time.monotonic() - began))


def duration(seconds: float) -> str:
    """Returns e.g. "42 s", "3 min 10 s", "2 h 05 min"."""
    if seconds == float("inf"):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLog:
    """Logs how far long work is, with rate and time left, every so often and at the end.

    total: units of work. start: how many of them are done already. unit: their name, plural.
    """

    def __init__(self, total: int, start: int = 0, unit: str = "samples"):
        self._total = total
        self._done = start
        self._unit = unit
        self._progress = Progress(start, total)
        self._due = time.monotonic() + _LOG_SECONDS

    def __call__(self, count: int) -> None:
        """Adds `count` units that are done."""
        self._done += count
        if self._done < self._total and time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LOG_SECONDS
        rate, left = self._progress.look(self._done)
        logging.info(
            "%d of %d %s, %.1f a second, %s left",
            *(self._done, self._total, self._unit, rate, duration(left)),
        )

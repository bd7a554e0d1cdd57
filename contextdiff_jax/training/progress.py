"""Rate and time left of long work, measured between two looks."""

import time


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

    def skip(self) -> None:
        """Leaves the time since the last look (a save, a preview) out of the next rate."""
        self._last = (self._last[0], self._clock())


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

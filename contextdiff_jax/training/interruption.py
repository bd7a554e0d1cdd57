"""Preemption: SIGTERM and SIGINT end a run after saving, with an exit code that says so."""

import signal

EXIT_INTERRUPTED = 75  # "try again later" in sysexits.h: the same command resumes


class Interrupted(RuntimeError):
    """The run was asked to stop; its state is saved at `step`."""

    def __init__(self, step: int):
        super().__init__(f"stopped on request at step {step}, saved; the same command resumes")
        self.step = step


class Watch:
    """While entered, the first SIGTERM or SIGINT sets `triggered`; a second one acts as usual."""

    def __init__(self):
        self.triggered = False
        self._before = {}

    def __enter__(self) -> "Watch":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame) -> None:
        self.triggered = True
        signal.signal(number, self._before[number])

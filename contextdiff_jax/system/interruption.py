"""Preemption: SIGTERM, SIGHUP and SIGINT end a run after saving, with a code that says so.

A signal to one process of several ends all of them, at the same step.
"""

import collections
import signal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.system import notices


class Interrupted(RuntimeError):
    """The work was asked to stop; its state is saved at `step`, a number of `unit`s."""

    def __init__(self, step: int, unit: str = "step"):
        super().__init__(f"stopped on request at {unit} {step}, saved; the same command resumes")
        self.step = step


class Watch:
    """While entered, SIGTERM, SIGHUP or SIGINT sets `triggered`; a second SIGINT acts as before.

    A second SIGTERM does not: a machine that is taken away sends it to every process it finds, and
    the launcher's script passes its own on. Under nohup SIGHUP is ignored, as ever.
    """

    def __init__(self):
        self.triggered = False
        self._before = {}
        self._wakeup = -1

    def __enter__(self) -> "Watch":
        self._wakeup = signal.set_wakeup_fd(-1)  # else notices.py ends the process
        for number in notices.NOTICES:
            if not notices.unheard(number):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)

    def _handle(self, number: int, _frame) -> None:
        self.triggered = True
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])


class Vote:
    """Whether any process wants to stop: the same answer at the same step on all of them.

    One process decides at once. Several take a tiny collective each step, and read the answer of
    LAG steps before, which is there by then: no step waits for another's result.
    (jax.experimental.multihost_utils.reached_preemption_sync_point would need no collective, but
    Orbax calls it too, from its own thread and with an older step, which moves its counter back.)
    """

    LAG = 2

    def __init__(self):
        self._answers: collections.deque[jax.Array] = collections.deque()
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
        self._sharding = NamedSharding(mesh, PartitionSpec("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def stop(self, wanted: bool) -> bool:
        """Gives this process's vote of this step and returns what all of them do now."""
        if jax.process_count() == 1:
            return wanted
        votes = np.full((jax.local_device_count(),), wanted)
        votes = jax.make_array_from_process_local_data(self._sharding, votes)
        self._answers.append(self._any(votes))
        return len(self._answers) > self.LAG and bool(self._answers.popleft())

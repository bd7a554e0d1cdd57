"""The one training loop: every task, every mesh, resumed by giving the same command again."""

import collections
import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.audit import audit, report
from contextdiff_jax.parallel.mesh import BATCH_AXES
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated, shardings_of
from contextdiff_jax.spaces.pictures import side_by_side
from contextdiff_jax.system import interruption
from contextdiff_jax.system.progress import Progress, duration, phase
from contextdiff_jax.training import failure, overview
from contextdiff_jax.training.checkpoints import CheckpointError, Checkpoints
from contextdiff_jax.training.metrics import MetricLog
from contextdiff_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate_schedule,
    make_optimizer,
)
from contextdiff_jax.training.parameter_names import like
from contextdiff_jax.training.random import stream_key
from contextdiff_jax.training.state import (
    TrainState,
    abstract_state,
    by_group,
    new_state,
    sharded_abstract,
)
from contextdiff_jax.training.step import jit_train_step, make_train_step
from contextdiff_jax.training.task import Params, Task
from contextdiff_jax.training.window import Window

_OWNER = "owner"  # file in a run's folder: which process trains it
_AHEAD = 2  # batches on the device before the step that reads them


class Batches(Protocol):
    """An iterator of this process's part of the global batches, as dicts of numpy arrays."""

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """What the loop itself needs of a run's config; see config.RunConfig for the meanings."""

    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    seed: int
    log_every: int
    save_every: int
    checkpoints_kept: int
    preview_every: int
    diagnose_every: int


class Trainer:
    """One run of one task in one directory.

    weights: host arrays, as nested dicts, that parameters of a fresh state have instead of init's.

    Raises ValueError, before anything is placed, when the state and the frozen parameters cannot
    fit the devices, or large arrays would be whole on each of a mesh that could split them.
    """

    def __init__(
        self,
        task: Task,
        settings: LoopSettings,
        directory: epath.PathLike,
        mesh: Mesh,
        metadata: dict[str, Any],
        weights: Params | None = None,
    ):
        self.task, self.settings, self.mesh = task, settings, mesh
        self.directory = epath.Path(directory)
        self.metadata = metadata
        self._weights = weights or {}
        self.optimizer = make_optimizer(settings.optimizer, settings.steps)
        self.checkpoints = Checkpoints(self.directory / "checkpoints", settings.checkpoints_kept)
        self._init_key = stream_key(settings.seed, "init")
        self._shapes, self._shardings = abstract_state(task, self.optimizer, self._init_key, mesh)
        self._frozen_shardings = shardings_of(task.boxed_frozen(), mesh)
        kept = by_group(self._shapes, self._shardings)
        kept |= {"frozen": (task.frozen, self._frozen_shardings)}
        self._memory = audit(kept)  # now: placing what cannot fit would end without a sentence
        self._frozen = distributed.place(task.frozen, self._frozen_shardings)
        step = make_train_step(
            task,
            self.optimizer,
            seed=settings.seed,
            ema_decay=settings.optimizer.ema_decay,
            accumulation=settings.optimizer.accumulation,
        )
        self._step = jit_train_step(step, self._shardings, self._frozen_shardings, mesh)
        # Whole on every device, so that process 0 can read them.
        whole = replicated(mesh)
        self._diagnose = jit_on_mesh(task.diagnose, mesh, out_shardings=whole)
        self._preview = jit_on_mesh(task.preview, mesh, static_argnums=2, out_shardings=whole)
        self._window = Window()
        self._compiled: set[str] = set()  # of step, diagnostics and preview
        self._began = (0, 0)  # step and data position of the start, or of the checkpoint

    def start(self) -> tuple[TrainState, int]:
        """Returns the newest checkpoint's state and data position, or a fresh state and 0."""
        restored = self.checkpoints.restore(sharded_abstract(self._shapes, self._shardings))
        if restored is not None:
            logging.info("resumed at step %d", int(restored.state.step))
            self._window = Window(restored.metadata.get("window"))
            self._began = (int(restored.state.step), restored.position)
            return restored.state, restored.position
        init = jit_on_mesh(
            lambda key, weights: new_state(self.task, self.optimizer, key, weights),
            self.mesh,
            runs_once=True,
            out_shardings=self._shardings,
        )
        weights, self._weights = self._weights, {}  # placed, the host needs them no more
        weights = distributed.place(weights, like(self._shardings.params, weights))
        return init(self._init_key, weights), 0

    def describe(self, state: TrainState, batch: Mapping[str, jax.Array]) -> None:
        """Writes parameters and bytes per device: all to overview.txt, a summary to the log."""
        if not distributed.is_main():
            return
        of_batch = jax.tree.map(lambda array: array.sharding, batch)
        memory = [*self._memory, *report({"batch": (batch, of_batch)})]
        file = self.directory / "overview.txt"
        file.write_text("\n".join([overview.table(state.params), *memory]) + "\n")
        lines = "\n".join([*overview.summary(state.params), *memory])
        logging.info("parameters and memory (every parameter: %s):\n%s", file, lines)

    def train(self, open_batches: Callable[[int], Batches]) -> TrainState:
        """Trains to the last step and saves it.

        open_batches(position) gives the batches from that global example index on.
        Raises interruption.Interrupted after a notice to end, such as SIGTERM (the state is saved),
        failure.NotFinite when the loss is not finite (everything to look into it is saved),
        CheckpointError when a checkpoint cannot be written.
        """
        settings = self.settings
        state, position = self.start()
        first = int(state.step)
        if first >= settings.steps:
            logging.info("finished already, at step %d", first)
            return state
        self._claim()
        batches = open_batches(position)
        log = MetricLog(self.directory, first) if distributed.is_main() else None
        progress = Progress(first * settings.batch_size, settings.steps * settings.batch_size)
        vote = interruption.Vote()
        watch, alone = interruption.Watch(), jax.process_count() == 1
        try:
            with contextlib.ExitStack() as watched:
                if not alone:
                    watched.enter_context(watch)  # from now on: one that is told tells the others
                for step, batch in enumerate(self._on_device(batches), first + 1):
                    if step == first + 1:
                        self.describe(state, batch)
                    with self._first_time("step"):
                        state, metrics = self._step(state, self._frozen, batch)
                        if step == first + 1:
                            jax.block_until_ready(state.step)
                    self._window.add(metrics)
                    if step == first + 1:
                        if alone:
                            watched.enter_context(watch)  # until now there was nothing to save
                        progress.restart(step * settings.batch_size)
                    if step % settings.log_every == 0 or step == settings.steps:
                        self._report(step, state, progress, log)
                    self._diagnose_and_preview(step, state, batch, log, progress)
                    stop = vote.stop(watch.triggered)
                    last = step == settings.steps or stop
                    if last or step % settings.save_every == 0:
                        with _paused(progress, state):
                            self._save(state)
                    if last:
                        break
                self.checkpoints.wait()
                if stop and step < settings.steps:
                    raise interruption.Interrupted(step)
        finally:
            batches.close()
            if log is not None:
                log.close()
        return state

    def _on_device(self, batches: Batches) -> Iterator[dict[str, jax.Array]]:
        """Moves batches to the mesh a few steps ahead of their use.

        "index", the samples' places in their source, stays behind: no step reads it.
        """
        sharding, size = batch_sharding(self.mesh), self.settings.batch_size
        waiting: collections.deque = collections.deque()
        for batch in batches:
            waiting.append(
                {
                    name: jax.make_array_from_process_local_data(
                        sharding, value, (size, *value.shape[1:])
                    )
                    for name, value in batch.items()
                    if name != "index"
                }
            )
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _report(self, step, state, progress, log) -> None:
        """Fetches the window's metrics (the loop's only sync), checks them and writes them."""
        failed_at = int(self._window.rows()[-1]["failed_at"])
        if failed_at >= 0:
            self._fail(failed_at, state)
        rate, left = progress.look(step * self.settings.batch_size)
        values, self._window = self._window.means(), Window()
        schedule = learning_rate_schedule(self.settings.optimizer, self.settings.steps)
        values["learning_rate"] = float(schedule(step - 1))
        if rate > 0:  # else this is the first step, of which no time is known
            values["images_per_second"] = rate
        if log is not None:
            log.scalars(step, values)
            done = 100 * step / self.settings.steps
            logging.info("%.0f %% done, %s left", done, duration(left))

    def _diagnose_and_preview(self, step, state, batch, log, progress) -> None:
        """Diagnostics and previews, when this step is theirs."""
        settings = self.settings
        if settings.diagnose_every and step % settings.diagnose_every == 0:
            with _paused(progress, state), self._first_time("diagnostics"):
                key = stream_key(settings.seed, "diagnose", step)
                values = self._diagnose(state.params, self._frozen, batch, key)
                if log is not None and values:
                    log.scalars(step, {k: float(v) for k, v in jax.device_get(values).items()})
        if settings.preview_every and step % settings.preview_every == 0:
            with _paused(progress, state), self._first_time("preview"):
                rows = [
                    self._preview(params, self._frozen, settings.seed)
                    for params in (state.params, state.ema)
                ]
                if log is not None and rows[0] is not None:
                    log.image(step, "preview", side_by_side(*map(np.asarray, rows)))

    def _first_time(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Says so where this compiles a program first, which may take minutes."""
        if what in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(what)
        return phase(f"compiling and doing the first {what}")

    def _claim(self) -> None:
        """Makes the run this process's: one that trained it until now saves nothing more."""
        self._owner = uuid.uuid4().hex
        if distributed.is_main():
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / _OWNER).write_text(self._owner)

    def _check_owner(self) -> None:
        path = self.directory / _OWNER
        if distributed.is_main() and path.read_text() != self._owner:
            raise CheckpointError(
                f"another process now trains in {self.directory}; this one stops without saving"
            )

    def _save(self, state: TrainState) -> None:
        self._check_owner()
        failed_at = int(state.failed_at)
        if failed_at >= 0:
            self._fail(failed_at, state)
        metadata = self.metadata | {"window": self._window.to_json()}
        self.checkpoints.save(state, self._position(int(state.step)), metadata)

    def _position(self, done: int) -> int:
        """Returns the global index of the first example that `done` steps have not read."""
        step, position = self._began  # before which the batches may have had another size
        return position + (done - step) * self.settings.batch_size

    def _fail(self, done: int, state: TrainState) -> None:
        self.checkpoints.wait()
        found = failure.Failure(
            done + 1, self._position(done), self._window.rows(), self.checkpoints.latest_step()
        )
        raise failure.save_and_describe(self.directory / "failure", found, state, self.metadata)


@contextlib.contextmanager
def _paused(progress: Progress, state: TrainState) -> Iterator[None]:
    """Leaves what happens within out of the rate, but not the steps that are still to end."""
    jax.block_until_ready(state.step)
    with progress.pause():
        yield


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Raises ValueError unless the global batch splits over devices and micro-batches."""
    devices = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    if batch_size % (devices * accumulation):
        fits = max(batch_size // (devices * accumulation), 1) * devices * accumulation
        raise ValueError(
            f"batch_size = {batch_size}: must be divisible by {devices} devices (data x fsdp) "
            f"times {accumulation} accumulation steps, e.g. {fits}"
        )

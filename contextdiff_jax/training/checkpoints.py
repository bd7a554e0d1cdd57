"""Checkpoints of a run: state, data position and config fingerprint, by Orbax.

Saves are asynchronous and atomic: a directory without Orbax's commit is never read, and its
remains are removed when the run starts again. Nothing else in the project imports Orbax, except
`export.py`'s sampling checkpoints, which use `save_tree` and `load_tree` below.

What is read was compared with its checksums (checksums.py). Process 0 records them while training
goes on, of the files of all processes, just before Orbax commits the step: a step that counts has
them, whenever the run was killed. Two files that the commit itself writes, of which nothing is
restored, follow when the write is waited for; a kill in between leaves those two unlisted. Each
byte is read once more for it, on a bucket too. Not all of it is forced to disk: after a power cut
the newest step may be incomplete, which its checksums find. When a run starts, each process
compares a part of them, and all decide alike; benchmarks.checksum_cost says what that costs.
Checkpoints of earlier versions, without checksums, are read, and the log says so.

A damaged step is never read. A run goes on from the newest sound one and moves the damaged ones
after it to STEP.damaged, which Orbax overlooks and nothing deletes; where none is sound, nothing
is moved and it ends (CheckpointError). A look at a run (`newest_...`) passes damaged steps over,
with a warning, and moves nothing.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from contextdiff_jax.parallel import distributed
from contextdiff_jax.system.buckets import in_bucket
from contextdiff_jax.training import checksums
from contextdiff_jax.training.state import TrainState

_LAYOUT = 1  # bumped when the content of a checkpoint changes shape
_OF_COMMIT = ("_CHECKPOINT_METADATA", "commit_success.txt")  # what Orbax's commit writes
_MEND = "put a sound copy in its place, or make it again"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back: the state, the next global example index, and the metadata."""

    state: TrainState
    position: int
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Sound:
    """The newest sound step, its metadata, and what is wrong with those after it, newest first."""

    step: int
    metadata: dict[str, Any]
    damaged: dict[int, str]


class Checkpoints:
    """The checkpoints of one run in `directory`/STEP, the last `keep` of them (None: all).

    read_only: for a look at a run that may be training: nothing is made, moved or removed, not the
    remains of unfinished saves either, one of which may be that run's save in progress.
    """

    def __init__(
        self, directory: epath.PathLike, keep: int | None = None, *, read_only: bool = False
    ):
        self.directory = epath.Path(directory)
        self._unfinished: int | None = None  # the step being written, by this object
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
        )
        if not read_only:
            # On process 0, when all have written and the commit is next.
            options.async_options = ocp.AsyncOptions(post_finalization_callback=self._record)
        self._manager = ocp.CheckpointManager(self.directory.resolve(), options=options)

    def latest_step(self) -> int | None:
        """Returns the newest committed step, sound or not, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: int, metadata: dict[str, Any]) -> None:
        """Starts writing the state of `state.step`; waits first for the write before, if any.

        metadata: JSON values (config, encoder identities, versions).
        Raises CheckpointError when this write or the one before it failed, e.g. on a full disk.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self.wait()
        content = {"layout": _LAYOUT, "position": position, "checksums": True, **metadata}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(content)
        )
        self._unfinished = step
        try:
            self._manager.save(step, args=args, force=True)
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when every started write is on disk. Raises CheckpointError when one failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if self._unfinished is not None and distributed.is_main():
                checksums.add(self.directory / str(self._unfinished), _OF_COMMIT)
        except (OSError, ValueError) as error:
            raise self._failed(self._unfinished, error) from error
        finally:
            self._unfinished = None

    def restore(self, abstract: TrainState) -> Restored | None:
        """Returns the newest sound checkpoint laid out as `abstract` says; None: there is none yet.

        Damaged ones after it are moved aside, with a warning that says how many steps are lost.
        Raises CheckpointError where all are damaged, or the one read does not fit `abstract`: a
        run never starts afresh beside checkpoints it cannot read.
        """
        sound = self._newest_sound()
        if sound is None:
            return None
        folder = self.directory / str(sound.step)
        if sound.metadata["layout"] != _LAYOUT:
            raise CheckpointError(
                f"{folder} has layout {sound.metadata['layout']!r}, this version reads {_LAYOUT}"
            )
        mismatch = "if this config trained it, it is damaged: move it away to use the one before"
        with _readable(folder, "be read into this config's networks", mismatch):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self._manager.restore(sound.step, args=args)
        logging.info("read the checkpoint of step %d", sound.step)
        self._move_aside(sound)
        return Restored(restored["state"], sound.metadata["position"], sound.metadata)

    def newest(self) -> dict[str, Any] | None:
        """Returns the metadata of the newest sound checkpoint with its "step"; None: none yet.

        Raises CheckpointError where all are damaged.
        """
        sound = self._newest_sound()
        if sound is None:
            return None
        for step, damage in sound.damaged.items():
            _warn_once(
                f"the checkpoint of step {step} in {self.directory} is damaged ({damage}): "
                f"the one of step {sound.step} is used"
            )
        return sound.metadata | {"step": sound.step}

    def close(self) -> None:
        """Finishes writing and releases Orbax's threads."""
        self._manager.close()

    def _newest_sound(self) -> _Sound | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged: dict[int, str] = {}
        for step in steps:
            damage = self._damage(step)
            metadata = None if damage else self._metadata(step)
            if metadata is not None:
                return _Sound(step, metadata, damaged)
            damaged[step] = damage or "metadata/metadata: is missing or cannot be read"
        if not damaged:
            return None
        self._manager.reload()
        if distributed.from_main(sorted(self._manager.all_steps(), reverse=True) != steps):
            return self._newest_sound()  # the run that trains here has removed what it replaced
        found = "; ".join(f"{step}/{damage}" for step, damage in damaged.items())
        raise CheckpointError(
            f"{self.directory} holds no sound checkpoint ({found}): put a sound copy in its place, "
            "or remove what is there to begin anew"
        )

    def _damage(self, step: int) -> str | None:
        """Returns what the checksums of a step find, on every process the same."""
        folder = self.directory / str(step)
        if not distributed.from_main(checksums.recorded(folder)):
            return None
        index, count = jax.process_index(), jax.process_count()
        with _readable(folder):
            damage = checksums.damage(folder, may_be_unlisted=_OF_COMMIT, index=index, count=count)
        if damage and index:
            logging.warning("%s: %s", folder, damage)
        first = distributed.first_where(damage is not None)
        if first in (None, index):
            return damage
        return f"its files, as the log of process {first} says"

    def _metadata(self, step: int) -> dict[str, Any] | None:
        """Returns the metadata saved with `step`, or None where it is not whole."""
        folder = self.directory / str(step)
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        with _readable(folder):
            try:
                content = self._manager.restore(step, args=args)["metadata"]
            except (FileNotFoundError, NotADirectoryError, KeyError, ValueError, RecursionError):
                return None
        if not isinstance(content, dict) or not isinstance(content.get("position"), int):
            return None
        if not checksums.recorded(folder):
            if content.get("checksums"):
                return None
            _warn_once(f"{folder} was saved without checksums: read as it is")
        return {"layout": None} | content

    def _move_aside(self, sound: _Sound) -> None:
        if not sound.damaged:
            return
        if distributed.is_main():
            for step, damage in sound.damaged.items():
                folder = self.directory / str(step)
                target = _free(self.directory / f"{step}.damaged")
                try:
                    folder.rename(target)
                except OSError as error:
                    raise CheckpointError(
                        f"{folder} is damaged ({damage}) and cannot be moved to {target}: {error}; "
                        "move it away and give the same command again"
                    ) from error
                logging.warning(
                    "the checkpoint of step %d is damaged (%s): moved to %s; training goes on from "
                    "step %d; steps lost and done again: %d",
                    *(step, damage, target, sound.step, step - sound.step),
                )
        distributed.wait_for_all(f"damaged checkpoints beside {sound.step}")
        self._manager.reload()

    def _record(self) -> None:
        """Writes the checksums of the step that Orbax is about to commit."""
        name = str(self._unfinished)
        folder = self.directory / (name + ocp.utils.TMP_DIR_SUFFIX)
        if not folder.exists():  # in a bucket a file is the commit, the folder has its name already
            folder = self.directory / name
        checksums.record(folder, set(checksums.files_below(folder)) - set(_OF_COMMIT))

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return CheckpointError(
            f"{which} could not be written to {self.directory}: {error}; the one before it is "
            "whole: make room (or repair the path) and give the same command again"
        )


def newest_metadata(directory: epath.PathLike) -> dict[str, Any] | None:
    """Returns the metadata of the newest sound checkpoint in `directory` with its "step", or None.

    Raises CheckpointError where there are checkpoints and all are damaged.
    """
    # Process 0 may be about to make the folder; all must see the same.
    if not distributed.from_main(epath.Path(directory).exists()):
        return None
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        return checkpoints.newest()


def no_checkpoint(directory: epath.PathLike) -> ValueError:
    """Returns the error for a run without checkpoints: `directory` is WORKDIR/RUN/checkpoints."""
    return ValueError(f"{directory} holds no finished checkpoint yet; train this run first")


def newest_ema(directory: epath.PathLike) -> tuple[Any, dict[str, Any]]:
    """Returns the newest sound EMA weights in `directory`, as host arrays, and their metadata.

    Raises ValueError where there is no finished checkpoint yet, CheckpointError where all are
    damaged.
    """
    metadata = newest_metadata(directory)
    if metadata is None:
        raise no_checkpoint(directory)
    state = epath.Path(directory) / str(metadata["step"]) / "state"
    return _load(state, only="ema")["ema"], metadata


def save_tree(directory: epath.PathLike, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, replacing what is there, and waits.

    Its checksums follow as a last file: a kill just before leaves a tree without.
    """
    directory = epath.Path(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.resolve(), tree, force=True)
    if distributed.is_main():
        checksums.record(directory)


def holds_tree(directory: epath.Path) -> bool:
    """Whether `save_tree` wrote to this folder."""
    return (directory / "_METADATA").exists()


def load_tree(directory: epath.PathLike) -> Any:
    """Returns a tree written by `save_tree` as host (numpy) arrays.

    Raises CheckpointError where it is missing or damaged.
    """
    path = epath.Path(directory)
    if not path.exists():
        raise CheckpointError(f"{path} is missing; it should hold an Orbax checkpoint")
    check_saved(path)
    return _load(path)


def check_saved(folder: epath.Path, may_be_unlisted: Collection[str] | None = ()) -> None:
    """Raises CheckpointError, naming the file, unless a folder is what its checksums say.

    may_be_unlisted: as in checksums.damage. A folder of an earlier version, without checksums, is
    let pass, with a warning.
    """
    if not checksums.recorded(folder):
        _warn_once(f"{folder} was saved without checksums: read as it is")
        return
    with _readable(folder):
        damage = checksums.damage(folder, may_be_unlisted=may_be_unlisted)
    if damage:
        raise CheckpointError(
            f"{folder} is damaged: {damage}; {_MEND}; where it was changed on purpose, remove its "
            f"{checksums.NAME}"
        )


@functools.cache
def _warn_once(sentence: str) -> None:
    logging.warning("%s", sentence)


def _free(path: epath.Path) -> epath.Path:
    """Returns the path, or with the first number behind it that is not taken."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.parent / f"{path.name}.{number}"
    return free


@contextlib.contextmanager
def _readable(
    folder: epath.Path, cannot: str = "be read", advice: str = "give the same command again"
) -> Iterator[None]:
    """Turns whatever reading a folder raises into a CheckpointError, but for want of memory.

    What a bucket raised stays as well: the next try may be answered.
    """
    try:
        yield
    except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many types
        if in_bucket(folder) and isinstance(error, OSError):
            raise
        reason = f"{type(error).__name__}: {error}".partition(" [tensorstore_spec=")[0]
        raise CheckpointError(f"{folder} cannot {cannot} ({reason}); {advice}") from error


def _load(path: epath.Path, only: str | None = None) -> Any:
    """Returns a saved tree, or of a dict one entry alone: the others are not read."""
    advice = f"if it is damaged, {_MEND}"
    with _readable(path, advice=advice), ocp.PyTreeCheckpointer() as checkpointer:
        item = checkpointer.metadata(path.resolve()).item_metadata.tree
        if only is not None:
            item = {only: item[only]}
        args = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
            partial_restore=only is not None,
        )
        return checkpointer.restore(path.resolve(), args=args)

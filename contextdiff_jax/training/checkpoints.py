"""Checkpoints of a run: state, data position and config fingerprint, by Orbax.

Saves are asynchronous and atomic: a directory without Orbax's commit is never read, and its
remains are removed when the run starts again. Nothing else in the project imports Orbax, except
`export.py`'s sampling checkpoints, which use `save_tree` and `load_tree` below.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from contextdiff_jax.parallel import distributed
from contextdiff_jax.training.state import TrainState

_LAYOUT = 1  # bumped when the content of a checkpoint changes shape


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and what to do."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back: the state, the next global example index, and the metadata."""

    state: TrainState
    position: int
    metadata: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run in `directory`/STEP, the last `keep` of them (None: all).

    read_only: for a look at a run that may be training: nothing is made, and no remains of
    unfinished saves are removed, one of which may be that run's save in progress.
    """

    def __init__(
        self, directory: epath.PathLike, keep: int | None = None, *, read_only: bool = False
    ):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
        )
        self._manager = ocp.CheckpointManager(self.directory.resolve(), options=options)

    def latest_step(self) -> int | None:
        """Returns the newest committed step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: int, metadata: dict[str, Any]) -> None:
        """Starts writing the state of `state.step`; waits first for the write before, if any.

        metadata: JSON values (config, encoder identities, versions).
        Raises CheckpointError when this write or the one before it failed, e.g. on a full disk.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        content = {"layout": _LAYOUT, "position": position, **metadata}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(content)
        )
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
        except (OSError, ValueError) as error:
            raise self._failed(None, error) from error

    def restore(self, abstract: TrainState) -> Restored | None:
        """Returns the newest checkpoint laid out as `abstract` says, or None when there is none.

        Any mismatch is an error: a run never starts afresh beside checkpoints it cannot read.
        """
        step = self.latest_step()
        if step is None:
            return None
        metadata = self.metadata(step)
        if metadata.get("layout") != _LAYOUT:
            raise CheckpointError(
                f"{self.directory}/{step} has layout {metadata.get('layout')!r}, "
                f"this version reads {_LAYOUT}"
            )
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{self.directory}/{step} cannot be read into this config's networks: {error}"
            ) from error
        logging.info("read the checkpoint of step %d", step)
        return Restored(restored["state"], int(metadata["position"]), metadata)

    def metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved with `step`."""
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["metadata"]

    def close(self) -> None:
        """Finishes writing and releases Orbax's threads."""
        self._manager.close()

    def _failed(self, step: int | None, error: Exception) -> CheckpointError:
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        return CheckpointError(
            f"{which} could not be written to {self.directory}: {error}; the one before it is "
            "whole: make room (or mend the path) and give the same command again"
        )


def newest_metadata(directory: epath.PathLike) -> dict[str, Any] | None:
    """Returns the metadata of the newest checkpoint in `directory` with its "step", or None."""
    # Process 0 may be about to make the folder; all must see the same.
    if not distributed.from_main(epath.Path(directory).exists()):
        return None
    checkpoints = Checkpoints(directory, read_only=True)
    step = checkpoints.latest_step()
    found = None if step is None else checkpoints.metadata(step) | {"step": step}
    checkpoints.close()
    return found


def newest_ema(directory: epath.PathLike) -> tuple[Any, dict[str, Any]]:
    """Returns the newest EMA weights in `directory`, as host arrays, and their metadata.

    Raises CheckpointError where there is no finished checkpoint yet.
    """
    metadata = newest_metadata(directory)
    if metadata is None:
        raise CheckpointError(f"{directory} holds no finished checkpoint yet; train this run first")
    state = epath.Path(directory) / str(metadata["step"]) / "state"
    return _load(state, only="ema")["ema"], metadata


def save_tree(directory: epath.PathLike, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint, replacing what is there, and waits."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(epath.Path(directory).resolve(), tree, force=True)


def load_tree(directory: epath.PathLike) -> Any:
    """Returns a tree written by `save_tree` as host (numpy) arrays."""
    path = epath.Path(directory)
    if not path.exists():
        raise CheckpointError(f"{path} is missing; it should hold an Orbax checkpoint")
    return _load(path)


def _load(path: epath.Path, only: str | None = None) -> Any:
    """Returns a saved tree, or of a dict one entry alone: the others are not read."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        item = checkpointer.metadata(path.resolve()).item_metadata.tree
        if only is not None:
            item = {only: item[only]}
        args = ocp.args.PyTreeRestore(
            item=item,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item),
            partial_restore=only is not None,
        )
        return checkpointer.restore(path.resolve(), args=args)

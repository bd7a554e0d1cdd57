"""What a run starts from, and what of it is trained: `start_from` and `trainable` of its section.

Weights that are trained are read once, when the run begins; from then on they are in its
checkpoints. Those that are not (fixed) are read again whenever the run goes on: see weights.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from contextdiff_jax.config import Config, WarmStartConfig
from contextdiff_jax.encoders.name_map import check_fit
from contextdiff_jax.encoders.tensor_files import check_finite, listed
from contextdiff_jax.runs.abstract import UnknownSizes, abstract_task
from contextdiff_jax.runs.build import RUN_PREFIX
from contextdiff_jax.runs.weights import (
    Named,
    digest,
    fixed_weights,
    read_named,
    reader_of,
    source_folder,
)
from contextdiff_jax.training.parameter_names import (
    by_name,
    check_patterns,
    copied,
    matches,
    nested,
)
from contextdiff_jax.training.partial import fixed_shapes, trained_part
from contextdiff_jax.training.task import Params, Task


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins, or goes on, with.

    task: as the loop trains it. weights: of trained parameters that do not begin anew. record: for
    the metadata of checkpoints.
    """

    task: Task
    weights: Params = dataclasses.field(default_factory=dict)
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def start(
    config: Config, name: str, task: Task, workdir: epath.Path, saved: Mapping[str, Any] | None
) -> Start:
    """Returns what run `name` begins with, or goes on with from a checkpoint.

    saved: the checkpoint's metadata, None where there is none.
    Raises ValueError, by name, for parameters that its source lacks or has too many, of another
    shape, or not finite; CheckpointError where fixed parameters are not those it began with.
    """
    run = config.runs[name]
    if not (run.start_from.path or run.trainable):
        return Start(task)
    if saved is not None:
        fixed = fixed_weights(saved, workdir / name)
        return Start(trained_part(task, fixed), record={"start": saved["start"]})
    fixed = by_name(_fixed(config, name, task))
    taken: Named = {}
    if run.start_from.path:
        source = read_named(source_folder(run.start_from.path, workdir))
        shapes = by_name(_shapes(task))
        taken = _taken(config, name, shapes, source)
        taken |= copied(shapes, taken, run.task.copies)
        for each, leaf in taken.items():
            check_finite(each, leaf, repr(run.start_from.path))
        logging.info("run %s starts from %s: %d arrays", name, run.start_from.path, len(taken))
    kept = {each: taken[each] for each in fixed}
    weights = nested({each: leaf for each, leaf in taken.items() if each not in kept})
    record = {"path": run.start_from.path, "weights": digest(taken)}
    if kept:
        record |= {"fixed": sorted(kept), "fixed_weights": digest(kept)}
    return Start(trained_part(task, nested(kept)), weights, {"start": record})


def check_start(config: Config, name: str) -> None:
    """Raises ValueError for what `start` would refuse, as far as it shows before the run's turn.

    A source that is a folder must be there. Whether values are finite is left to `start`.
    """
    path = config.runs[name].start_from.path
    of_run = path.startswith(RUN_PREFIX)
    if path and not of_run:
        reader_of(epath.Path(path), f"config.runs.{name}.start_from.path = {path!r}")
    try:
        target = abstract_task(config, name)
        source = abstract_task(config, path.removeprefix(RUN_PREFIX)) if of_run else None
    except UnknownSizes:  # encoders of a folder: their sizes show when they are read
        return
    _fixed(config, name, target)
    if not path:
        return
    wanted = by_name(_shapes(target))
    found = by_name(_shapes(source)) if of_run else read_named(epath.Path(path))
    if config.runs[name].task.encoder_config is not None:  # its vocabulary's size shows later
        found = {each: wanted.get(each, leaf) for each, leaf in found.items()}
    _taken(config, name, wanted, found)


def _shapes(task: Task) -> Params:
    return jax.eval_shape(task.init, jax.random.key(0))


def _fixed(config: Config, name: str, task: Task) -> Params:
    """Returns the shapes of what the run does not train; ValueError where nothing gives it."""
    run, where = config.runs[name], f"config.runs.{name}"
    shapes = fixed_shapes(task, run.trainable, f"{where}.trainable")
    fixed, fresh = by_name(shapes), run.start_from.fresh
    anew = [each for each in fixed if not run.start_from.path or matches(each, fresh)]
    if anew:
        raise ValueError(
            f"{where}.trainable leaves {listed(anew)} at random values: must be trained, or taken "
            f"by {where}.start_from"
        )
    trained = {each.split("/")[0] for each in by_name(_shapes(task)) if each not in fixed}
    if trained == {"adapter"} and run.optimizer.adapter_rate == 0:
        raise ValueError(
            f"{where}.optimizer.adapter_rate = 0: must be above 0 where {where}.trainable leaves "
            "nothing else to train"
        )
    return shapes


def _taken(config: Config, name: str, target: Named, source: Named) -> Named:
    """Returns what a run takes of its source; ValueError unless it is all that is not fresh."""
    settings, where = config.runs[name].start_from, f"config.runs.{name}.start_from"
    check_patterns(settings.fresh, target, f"{where}.fresh")
    chosen = _chosen(settings, target, source, where)
    taken, wanted = (
        {each: tree[each] for each in names if not matches(each, settings.fresh)}
        for tree, names in ((source, chosen), (target, target))
    )
    expected, found = ({n: leaf.shape for n, leaf in tree.items()} for tree in (wanted, taken))
    try:
        check_fit(expected, found, f"{settings.path!r}, from which run {name!r} starts,")
    except ValueError as error:
        raise ValueError(
            f"{error}; {where}.fresh names what begins anew, {where}.parts what is taken"
        ) from error
    return taken


def _chosen(settings: WarmStartConfig, target: Named, source: Named, where: str) -> list[str]:
    """Returns the names in the source that `parts` chooses, or of the networks that both have."""
    if settings.parts:
        check_patterns(settings.parts, source, f"{where}.parts")
        return [each for each in source if matches(each, settings.parts)]
    here, there = ({each.split("/")[0] for each in tree} for tree in (target, source))
    if not here & there:
        raise ValueError(
            f"{where}.path = {settings.path!r}: has {', '.join(sorted(there)) or 'no parameters'}, "
            f"must have one of {', '.join(sorted(here))}, the networks of this run"
        )
    return [each for each in source if each.split("/")[0] in here]

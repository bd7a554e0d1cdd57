"""What of a config may change between a run's checkpoint and its resumption.

The newest checkpoint's metadata say under "history" what did: [{"step", "key", "from", "to"}, ...].
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from contextdiff_jax.config import Change, ConfigError, changes, from_config_dict
from contextdiff_jax.runs.build import NETWORKS

# Keys of a run that may change between a checkpoint and its resumption: they change what is
# written, how fast and in how much memory, or how long the run goes on. Where `steps` shape the
# learning rate too, the log says so.
_FREE = {"steps", "log_every", "save_every", "keep", "preview", "diagnose_every", "sampler"}
# Of embeddings, what they hold is compared, by their metadata, not where they lie.
_FREE_DATA = {"threads", "processes", "cache_dir", "embeddings"}
_FREE_NETWORK = {"attention_implementation", "remat", "remat_levels"}

# Keys that change the numbers, and how they may, because a message advises it: on a loss that is
# not finite, on memory that does not suffice, on a batch that does not split over other devices.
_ADVISED: dict[str, Callable[[Any, Any], bool]] = {
    "batch_size": lambda before, now: True,
    "optimizer.accumulation": lambda before, now: True,
    "optimizer.learning_rate": lambda before, now: now <= before,
    "optimizer.warmup_steps": lambda before, now: now >= before,
    # Without any clipping (0) the optimizer keeps a state of another form.
    "optimizer.clip_norm": lambda before, now: 0 < now <= before,
}


def check_same_run(saved: dict, current: dict, name: str) -> list[dict[str, Any]]:
    """Returns in what an unfinished run goes on otherwise than its checkpoint was made.

    As entries of the checkpoint's history: {"step", "key", "from", "to"}. Those that change the
    numbers are logged as warnings.

    Raises ConfigError naming the keys that may not change. Only what changes the numbers counts:
    the run's own section, seed, dtype, use_adapter, the data and the encoders' identity.
    """
    _refuse_other_decay(saved, name)
    recorded = ("encoders", "data")
    found = changes({key: current[key] for key in recorded}, {key: saved[key] for key in recorded})
    found += changes(_read_anew(current["config"], name), _read_anew(saved["config"], name))
    numeric = [change for change in found if not _free(change, name)]
    _refuse([change for change in numeric if not _advised(change, name)], name)
    step = saved["step"]
    for change in found:
        log = logging.warning if change in numeric else logging.info
        log("from step %d on %s = %r, before %r", step, change.key, change.ours, change.theirs)
    return [
        {"step": step, "key": change.key, "from": change.theirs, "to": change.ours}
        for change in found
    ]


def check_finished_run(saved: dict, current: dict, name: str) -> None:
    """Raises as check_same_run does, where any number would change; compares the configs alone.

    Its data need not be there any more.
    """
    found = changes(_read_anew(current, name), _read_anew(saved["config"], name))
    _refuse([change for change in found if not _free(change, name)], name)


def warn_of_new_length(saved: dict, current: dict, name: str) -> None:
    """Logs a warning where another number of steps gives a resumed run another learning rate."""
    before, now = (content["config"]["runs"][name] for content in (saved, current))
    if before["steps"] != now["steps"] and now["optimizer"]["decay"] != "constant":
        logging.warning(
            "run %s was begun with steps = %d and goes on with %d: the learning rate follows the "
            "%s to the new end from here on",
            *(name, before["steps"], now["steps"], now["optimizer"]["decay"]),
        )


def _refuse(found: list[Change], name: str) -> None:
    if found:
        raise ConfigError(
            f"the checkpoint of run {name!r} was made by another config: "
            + "; ".join(map(str, found[:8]))
            + (f"; and {len(found) - 8} more" if len(found) > 8 else "")
            + "; use another --workdir, or give back the old values"
        )


def _refuse_other_decay(saved: dict, name: str) -> None:
    """Of versions before checkpoints had a history: their Adafactor decayed at any rate alike."""
    optimizer = saved["config"]["runs"][name]["optimizer"]
    decays = optimizer.get("name") == "adafactor" and optimizer.get("weight_decay")
    if decays and "history" not in saved:
        raise ConfigError(
            f"the checkpoint of run {name!r} is of a version whose Adafactor did not scale "
            f"weight_decay = {optimizer['weight_decay']} by the learning rate; use another "
            "--workdir, and train anew"
        )


def _read_anew(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns what is compared; keys that came after the checkpoint have the value they stand for.

    The mesh is free, and recorded.
    """
    config = dataclasses.asdict(from_config_dict(dict(config)))
    run = config["runs"][name]
    keys = ("seed", "dtype", "mesh") + (("use_adapter",) if run["task"] != "contrastive" else ())
    return {key: config[key] for key in keys} | {"runs": {name: run}}


def _free(change: Change, name: str) -> bool:
    """Whether a run may change the key at any time."""
    if change.key.startswith("config.mesh."):
        return True
    key, _, inner = change.key.removeprefix(f"config.runs.{name}.").partition(".")
    of_section = {"data": _FREE_DATA} | dict.fromkeys(NETWORKS, _FREE_NETWORK)
    return key in _FREE or inner in of_section.get(key, ())


def _advised(change: Change, name: str) -> bool:
    """Whether a run that goes on may change the key like this."""
    may = _ADVISED.get(change.key.removeprefix(f"config.runs.{name}."))
    return may is not None and may(change.theirs, change.ours)

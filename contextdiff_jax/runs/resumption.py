"""What of a config may change between a run's checkpoint and its resumption: what its fields say.

The newest checkpoint's metadata say under "history" what did: [{"step", "key", "from", "to"}, ...].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging

from contextdiff_jax.config import Change, Config, ConfigError, changes, from_config_dict
from contextdiff_jax.system.resumed import MayChange, rule_of


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
    config = _typed(current)
    found += changes(_compared(config, name), _compared(_typed(saved), name))
    _refuse([change for change in found if not _allowed(change, config)], name)
    numeric = [change for change in found if _numeric(change, config)]
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
    config = from_config_dict(dict(current))
    found = changes(_compared(config, name), _compared(_typed(saved), name))
    _refuse([change for change in found if _numeric(change, config)], name)


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
            + "; use another --workdir, or restore the old values"
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


def _typed(metadata: Mapping[str, Any]) -> Config:
    """Returns a checkpoint's config; keys that came after it have the value they stand for."""
    return from_config_dict(dict(metadata["config"]))


def _compared(config: Config, name: str) -> dict[str, Any]:
    """Returns what is compared of a config."""
    keys = ("seed", "dtype", "mesh") + (("use_adapter",) if config.runs[name].task.draws else ())
    content = dataclasses.asdict(config)
    return {key: content[key] for key in keys} | {"runs": {name: content["runs"][name]}}


def _rule(change: Change, config: Config) -> MayChange | None:
    """What the changed field says of changes; None for what is no field of the config."""
    return rule_of(config, change.key.removeprefix("config.").split("."))


def _allowed(change: Change, config: Config) -> bool:
    rule = _rule(change, config)
    return rule is not None and rule.when(change.theirs, change.ours)


def _numeric(change: Change, config: Config) -> bool:
    rule = _rule(change, config)
    return rule is None or rule.numeric

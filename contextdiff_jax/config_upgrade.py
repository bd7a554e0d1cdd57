"""Configs of earlier versions, in checkpoints and exports, in the form of this one.

Version 0.1 kept what a task reads beside it: runs.NAME.task was its name, with the sections of
every task as its neighbours (those not read were None). Some keys had other names.
Later, only kind flow chose the times of training, within its own section.
"""

from collections.abc import Mapping
from typing import Any

_READ_BY = {
    "contrastive": ("clip", "tokenizer"),
    "text_to_image": ("unet",),
    "super_resolution": ("efficient_unet", "low_resolution", "augmentation"),
}
_DRAWING = ("adapter", "diffusion", "sampler", "preview", "diagnose_every")
_RENAMED = {
    "adapter": {"bound": "limit"},
    "diffusion": {"consistency": "relation_consistency"},
}
_TIMES = ("times", "time_mean", "time_std")  # of diffusion, once of diffusion.flow
_MOVED = {*_DRAWING, *(key for keys in _READ_BY.values() for key in keys)}


def upgraded(config: Any) -> Any:
    """Returns the config as this version has it; what is none, or is new already, as it is."""
    if not isinstance(config, Mapping) or not isinstance(config.get("runs"), Mapping):
        return config
    return {**config, "runs": {name: _upgraded_run(run) for name, run in config["runs"].items()}}


def _upgraded_run(run: Any) -> Any:
    if not isinstance(run, Mapping):
        return run
    if not isinstance(run.get("task"), str):
        return _with_times(run)
    kind = run["task"]
    keys = _READ_BY.get(kind, ())  # of an unknown kind nothing is read: its name is refused
    keys += _DRAWING if kind in _READ_BY and kind != "contrastive" else ()
    # A section that is None was left out: the task has its own default.
    read = {
        key: _renamed(run[key], _RENAMED.get(key, {})) for key in keys if run.get(key) is not None
    }
    kept = {key: value for key, value in run.items() if key not in _MOVED}
    kept = _renamed(kept, {"keep": "checkpoints_kept"})
    return _with_times({**kept, "task": {"kind": kind, **read}})


def _with_times(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the run with the keys of times in the section that has them now."""
    task = run.get("task")
    diffusion = task.get("diffusion") if isinstance(task, Mapping) else None
    flow = diffusion.get("flow") if isinstance(diffusion, Mapping) else None
    if not isinstance(flow, Mapping):
        return run
    # Where both places have a key, the old one stays, to be refused as unknown.
    moved = {key: flow[key] for key in _TIMES if key in flow and key not in diffusion}
    flow = {key: value for key, value in flow.items() if key not in moved}
    diffusion = {**diffusion, **moved, "flow": flow}
    return {**run, "task": {**task, "diffusion": diffusion}}


def _renamed(section: Any, names: Mapping[str, str]) -> Any:
    if not names or not isinstance(section, Mapping):
        return section
    # Where both names are there, the old one stays, to be refused as unknown.
    new = {old: name for old, name in names.items() if name not in section}
    return {new.get(key, key): value for key, value in section.items()}

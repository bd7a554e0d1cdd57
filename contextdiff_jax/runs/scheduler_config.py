"""diffusers' scheduler_config.json: the noise schedule of the training, and samplers.

Read as diffusers reads it. A file of one class gives the sampler of another one too: keys that it
has are taken, those that it lacks have the other class's defaults. As its pipelines do,
steps_offset is 1 and clip_sample False where early files say otherwise. What a sampler here cannot
do is refused by the name of its key.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from contextdiff_jax.diffusion.predictions import PredictionKind
from contextdiff_jax.diffusion.schedules import PUBLISHED_BETAS, Schedule, schedule_from_betas
from contextdiff_jax.encoders.config_fields import read_fields
from contextdiff_jax.encoders.diffusers_configs import check_fixed
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.scalars import read_scalar, shown
from contextdiff_jax.system.suggestions import nearest
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig

FILE = "scheduler_config.json"
NUM_STEPS, GUIDANCE = 50, 7.5  # of diffusers' pipelines

# Names here of diffusers' classes.
_NAMES = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm_solver++",
}
_FIELDS = {
    "num_train_timesteps": ("num_train", 1000),
    "beta_start": ("start", 0.0001),
    "beta_end": ("end", 0.02),
}
_FIXED = {"trained_betas": None, "thresholding": False, "rescale_betas_zero_snr": False}
_OF_SAMPLER: Mapping[str, Mapping[str, Any]] = {
    "plms": {},
    "ddim": {},
    "dpm_solver++": {
        "lambda_min_clipped": -math.inf,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "variance_type": None,
    },
}
_SPACINGS = {
    "plms": ("leading", "trailing"),
    "ddim": ("leading", "trailing"),
    "dpm_solver++": ("linspace", "leading", "trailing"),
}
_FINAL_IS_ONE = {"plms": False, "ddim": True}  # set_alpha_to_one
_PREDICTIONS: Mapping[str, PredictionKind] = {"epsilon": "eps", "v_prediction": "v"}
_MOST_TIMES = 10_000


@dataclasses.dataclass(frozen=True)
class NoiseScheduler:
    """A scheduler_config.json that was checked.

    default: the sampler of its class; None where that is none of ours. where: the file's name.
    values: what is in it.
    """

    schedule: Schedule
    prediction: PredictionKind
    default: str | None
    where: str
    values: Mapping[str, Any] = dataclasses.field(repr=False)

    def sampler(self, name: str | None = None) -> SamplerConfig:
        """Returns the settings of a sampler with diffusers' defaults; None takes the file's own.

        Raises ValueError for a name that is none of ours, and naming a key that does not fit.
        """
        name = self.default if name is None else name
        if name is None:
            raise ValueError(
                f"{self.where}: _class_name = {shown(self.values.get('_class_name'))}: must be "
                f"{', '.join(_NAMES)}, or give one of --sampler=name={', '.join(_OF_SAMPLER)}"
            )
        if name not in _OF_SAMPLER:
            raise ValueError(
                f"--sampler=name={name}: must be one of {', '.join(_OF_SAMPLER)}"
                f"{nearest(str(name), _OF_SAMPLER)}"
            )
        check_fixed(_OF_SAMPLER[name], self.values, self.where)
        spacing = self._spacing(name)
        solver = name == "dpm_solver++"
        return SamplerConfig(
            name=name,
            num_steps=NUM_STEPS,
            spacing=spacing,
            offset=1 if spacing == "leading" else 0,
            skip_last=solver and spacing != "trailing",
            final_timestep=0 if solver or self._final_is_one(name) else 1,
            guidance_scale=GUIDANCE,
            guidance_space="eps",
        )

    def _spacing(self, name: str) -> Any:
        allowed = _SPACINGS[name]
        spacing = self.values.get("timestep_spacing", allowed[0])
        if spacing not in allowed:
            raise ValueError(
                f"{self.where}: timestep_spacing = {shown(spacing)}: must be one of "
                f"{', '.join(allowed)} for {name}"
            )
        return spacing

    def _final_is_one(self, name: str) -> bool:
        key = "set_alpha_to_one"
        value = self.values.get(key, _FINAL_IS_ONE[name])
        return read_scalar(bool, value, f"{self.where}: {key}")


def read_scheduler(folder: os.PathLike) -> NoiseScheduler:
    """Returns what scheduler/ of a published folder says.

    Raises FileNotFoundError where scheduler_config.json is missing, ValueError, naming the key,
    where betas or prediction are none of Stable Diffusion's kinds.
    """
    path = os.path.join(folder, FILE)
    values = read_object(path, finite=False)  # DPM-Solver++'s has -Infinity
    return _checked(values, repr(path))


def _checked(values: Mapping[str, Any], where: str) -> NoiseScheduler:
    check_fixed(_FIXED, values, where)
    kind = values.get("_class_name")
    # Without it diffusers begins with Runge-Kutta steps, which nothing was published with.
    if kind == "PNDMScheduler" and values.get("skip_prk_steps", False) is not True:
        value = shown(values.get("skip_prk_steps", False))
        raise ValueError(f"{where}: skip_prk_steps = {value}: must be True")
    offset = values.get("steps_offset", 0)
    if offset not in (0, 1):
        raise ValueError(f"{where}: steps_offset = {shown(offset)}: must be 0 or 1")
    return NoiseScheduler(
        _schedule(values, where),
        _choice(values, "prediction_type", "epsilon", _PREDICTIONS, where),
        _NAMES.get(kind) if isinstance(kind, str) else None,
        where,
        values,
    )


def scheduler_json(diffusion: DiffusionConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """Returns the scheduler_config.json of a process and a sampler, with what is fixed by name.

    Raises ValueError, naming the field, where no class of diffusers draws as this sampler does.
    """
    classes = {name: kind for kind, name in _NAMES.items()}
    kinds = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    for key, value, allowed in (
        ("diffusion.kind", diffusion.kind, ("vp",)),
        ("diffusion.schedule", diffusion.schedule, PUBLISHED_BETAS),
        ("diffusion.prediction", diffusion.prediction, kinds),
        ("sampler.name", sampler.name, classes),
    ):
        if value not in allowed:
            raise ValueError(
                f"{key} = {value!r}: must be one of {', '.join(allowed)}, diffusers' schedulers of "
                "Stable Diffusion have no other"
            )
    ends = diffusion.betas or PUBLISHED_BETAS[diffusion.schedule]
    start, end = (beta * 1000 / diffusion.num_steps for beta in ends)
    values = {
        "_class_name": classes[sampler.name],
        "num_train_timesteps": diffusion.num_steps,
        "beta_schedule": diffusion.schedule,
        "beta_start": start,
        "beta_end": end,
        "prediction_type": kinds[diffusion.prediction],
        "timestep_spacing": sampler.spacing,
        "steps_offset": sampler.offset,
        **_of_class(sampler),
    }
    _check_drawn(sampler, _checked(values, FILE).sampler())
    return values


def _of_class(sampler: SamplerConfig) -> dict[str, Any]:
    if sampler.name == "dpm_solver++":
        # JSON has no infinity; the class's default is minus infinity.
        fixed = _OF_SAMPLER[sampler.name]
        return {k: value for k, value in fixed.items() if k != "lambda_min_clipped"}
    more = {"skip_prk_steps": True} if sampler.name == "plms" else {"clip_sample": False}
    return {"set_alpha_to_one": sampler.final_timestep == 0, **more}


def _check_drawn(ours: SamplerConfig, theirs: SamplerConfig) -> None:
    """Raises ValueError where a file reads as another sampler than it was made of."""
    for key in ("spacing", "offset", "skip_last", "final_timestep"):
        if getattr(ours, key) != getattr(theirs, key):
            raise ValueError(
                f"sampler.{key} = {getattr(ours, key)}: must be {getattr(theirs, key)}, as "
                f"diffusers' {ours.name} has it"
            )


def _schedule(values: Mapping[str, Any], where: str) -> Schedule:
    fields = read_fields(_FIELDS, values, where)
    start, end, num_train = fields["start"], fields["end"], fields["num_train"]
    if not 2 <= num_train <= _MOST_TIMES:
        raise ValueError(
            f"{where}: num_train_timesteps = {num_train}: must be in 2..{_MOST_TIMES:,}"
        )
    if not 0 < start <= end < 1:
        raise ValueError(
            f"{where}: beta_start = {start}, beta_end = {end}: must rise within (0, 1)"
        )
    power = _choice(values, "beta_schedule", "linear", {"linear": 1, "scaled_linear": 2}, where)
    betas = np.linspace(start ** (1 / power), end ** (1 / power), num_train) ** power
    name = f"{values.get('beta_schedule', 'linear')} from {start} to {end}"
    try:
        return schedule_from_betas(name, betas)
    except ValueError as error:
        raise ValueError(f"{where}: betas {name}: {error}") from error


def _choice(
    values: Mapping[str, Any], key: str, default: str, allowed: Mapping[str, Any], where: str
) -> Any:
    value = values.get(key, default)
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{where}: {key} = {shown(value)}: must be one of {', '.join(allowed)}")
    return allowed[value]

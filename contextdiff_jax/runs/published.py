"""Runs that begin with a published folder of Stable Diffusion: does their config describe it?

`config.model` is such a folder, in diffusers' layout. Only its small files are read here.
"""

import numpy as np
from etils import epath

from contextdiff_jax.config import Config
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.encoders.diffusers_configs import read_unet_config
from contextdiff_jax.runs.scheduler_config import FILE, read_scheduler
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig

INDEX = "model_index.json"
# What the file of a U-Net says and weights do not show, or show in a sentence of many names.
_DECISIVE = (
    *("channels", "num_blocks", "attention_levels", "heads", "depth", "context_dim"),
    *("image_channels", "groups", "linear_projection"),
)


def check_model(config: Config, name: str) -> None:
    """Raises ValueError where run `name` starts from config.model, and its config says otherwise.

    Compared are the U-Net's sizes, the noise schedule and what the network predicts.
    """
    run, folder = config.runs[name], epath.Path(config.model)
    task, unet = run.task, epath.Path(run.start_from.path)
    if not config.model or not task.in_latents:
        return
    if not folder.is_dir():
        raise ValueError(
            f"config.model = {config.model!r}: no folder there; must be one of Stable Diffusion in "
            "diffusers' layout"
        )
    if not (folder / INDEX).exists():
        raise ValueError(
            f"config.model = {config.model!r}: has no {INDEX}: must be a folder of Stable "
            "Diffusion in diffusers' layout"
        )
    if unet == folder:  # with its branch
        unet = folder / "unet"
    if unet.parent != folder:
        return
    found = read_unet_config(unet)
    for key in _DECISIVE:
        ours, theirs = (getattr(each, key) for each in (task.latent_unet, found))
        if ours != theirs:
            raise ValueError(
                f"config.runs.{name}.task.latent_unet.{key} = {ours}: must be {theirs}, as the "
                f"U-Net in {str(unet)!r} has it"
            )
    _check_process(task.diffusion, folder / "scheduler", f"config.runs.{name}.task.diffusion")


def _check_process(ours: DiffusionConfig, folder: epath.Path, where: str) -> None:
    theirs = read_scheduler(folder)
    if ours.prediction != theirs.prediction:
        raise ValueError(
            f"{where}.prediction = {ours.prediction!r}: must be {theirs.prediction!r}, as "
            f"{str(folder / FILE)!r} says"
        )
    if ours.kind != "vp":
        raise ValueError(f"{where}.kind = {ours.kind!r}: must be 'vp', the kind of the weights")
    schedule = make_schedule(ours.schedule, ours.num_steps, ours.betas or None)
    levels = [each.alpha_bar for each in (schedule, theirs.schedule)]
    if len(levels[0]) != len(levels[1]) or not np.allclose(*levels, rtol=1e-4, atol=0):
        raise ValueError(
            f"{where}.schedule = {ours.schedule!r} of {ours.num_steps} steps: must be that of "
            f"{str(folder / FILE)!r}, {theirs.schedule.name} of {theirs.schedule.num_steps} steps"
        )

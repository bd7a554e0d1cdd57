"""Stable Diffusion straight from a published folder in diffusers' layout: a cascade of one stage.

Read are unet/, vae/, text_encoder/, tokenizer/ and scheduler/; everything small is checked before
the first weights. The safety checker is not run.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.conditions.whole_text import WholeText
from contextdiff_jax.config import SamplesConfig
from contextdiff_jax.encoders.clip import TextTower
from contextdiff_jax.encoders.config import CLIPTextConfig
from contextdiff_jax.encoders.controlnet_weights import (
    ControlNetConfig,
    abstract_controlnet,
    controlnet_identity,
    load_controlnet,
    read_controlnet,
)
from contextdiff_jax.encoders.diffusers_configs import read_stage_config, read_unet_config
from contextdiff_jax.encoders.frozen import FrozenStage, TextEncoder, text_encoder
from contextdiff_jax.encoders.latent_weights import (
    abstract_unet,
    first_stage,
    first_stage_identity,
    load_first_stage,
    load_unet,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.lora_weights import load_lora
from contextdiff_jax.encoders.published_configs import read_clip_text_config
from contextdiff_jax.encoders.tokenizers import Tokenizer, load_tokenizer
from contextdiff_jax.encoders.weights import folder_identity, load_clip_text
from contextdiff_jax.generation.cascade import Cascade, Placed, Stage
from contextdiff_jax.generation.filtered import Shown
from contextdiff_jax.generation.sampler_flags import overridden, parse_overrides
from contextdiff_jax.networks.latent_config import FirstStageConfig, LatentUNetConfig
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.lora import with_lora
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.runs.build import named_dtype
from contextdiff_jax.runs.published import INDEX
from contextdiff_jax.runs.scheduler_config import NoiseScheduler, read_scheduler
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.spaces.latents import LatentSpace
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.scalars import shown
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.latent_text_to_image import Control, LatentTextToImage, Start

STAGE = "base"
_KIND = "StableDiffusionPipeline"
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_SAMPLES = SamplesConfig(batch_size=4)


@dataclasses.dataclass(frozen=True, eq=False)
class ControlSettings:
    """A picture that the pictures follow, through a control branch (ControlNet).

    path: of the branch, a folder in diffusers' layout or one of ControlNet's own files. picture:
    uint8 (H, W, 3). scale: factor on what the branch adds; 0 is no control.
    """

    path: epath.PathLike
    picture: np.ndarray
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all pictures of a call share.

    height, width: in pixels; None is the side that the U-Net was trained at. sampler: settings such
    as "name=ddim", "num_steps=20" or "guidance_scale=5". dtype: compute dtype; "auto" is bfloat16
    on accelerators. negative: the prompt that guidance leads away from. start: a picture to start
    from, whose size is the pictures'. control: a picture to follow, likewise. lora: a file of
    low-rank updates of the U-Net, in diffusers' names; None for none.
    """

    height: int | None = None
    width: int | None = None
    negative: str = ""
    sampler: Sequence[str] = ()
    dtype: str = "auto"
    start: Start | None = None
    control: ControlSettings | None = None
    lora: epath.PathLike | None = None


def load(
    folder: epath.PathLike, settings: Settings = Settings(), shown: Shown | None = None
) -> Cascade:
    """Returns the cascade of a folder; its `draw` takes prompts. shown: see Cascade.

    Raises FileNotFoundError where a part of the folder is missing, and ValueError, naming what is
    wrong: the folder is of another kind, its parts do not fit each other, what the scheduler says
    does not exist here, a size or sampler setting is not allowed, weights are missing or damaged,
    or do not fit the devices.
    """
    checked = _check(folder, settings)
    updates = None if settings.lora is None else load_lora(settings.lora, checked.unet)
    if shown is None:
        words = "the safety checker of Stable Diffusion is not run: pictures are not filtered"
        logging.warning(words)
    mesh = make_mesh(MeshConfig())
    placed = Placed(MeshConfig(), mesh)
    task = checked.task(named_dtype(settings.dtype))
    frozen = placed.frozen(task, STAGE)
    weights, boxed = {}, {"denoiser": abstract_unet(checked.unet)}
    if checked.branch is not None:
        weights["control"] = load_controlnet(settings.control.path, checked.branch)
        boxed["control"] = abstract_controlnet(checked.branch)
    _, weights["denoiser"] = load_unet(checked.folder / "unet")  # the largest by far comes last
    if updates is not None:
        weights["denoiser"] = with_lora(weights["denoiser"], updates, 1.0)
    params = placed.add(STAGE, weights, lambda: boxed)
    placed.describe()
    stage = Stage(STAGE, task, params, frozen, checked.sampler, mesh)
    return Cascade([stage], mesh, _SAMPLES, shown)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A folder whose small files were read and fit the settings."""

    folder: pathlib.Path
    unet: LatentUNetConfig
    stage: FirstStageConfig
    tokenizer: Tokenizer
    scheduler: NoiseScheduler
    sampler: SamplerConfig
    size: tuple[int, int]
    settings: Settings
    branch: ControlNetConfig | None

    def task(self, dtype: jnp.dtype) -> LatentTextToImage:
        """Loads text encoder and first stage, and returns the task."""
        schedule = self.scheduler.schedule
        config = DiffusionConfig(
            schedule="scaled_linear",
            num_steps=schedule.num_steps,
            prediction=self.scheduler.prediction,
        )
        _, params = load_first_stage(self.folder / "vae")
        module = first_stage(self.stage, dtype)
        height, width = self.size
        return LatentTextToImage(
            config=config,
            schedule=schedule,
            space=LatentSpace(module, height, width=width),
            conditions=(WholeText(self._text_encoder(dtype), self.settings.negative),),
            denoiser=LatentUNet(self.unet, dtype),
            adapter=None,
            image_encoder=None,
            sampler=self.sampler,
            start=self.settings.start,
            control=self._control(dtype),
            first_stage=FrozenStage(module, params, first_stage_identity(self.folder / "vae")),
        )

    def _control(self, dtype: jnp.dtype) -> Control | None:
        if self.branch is None:
            return None
        asked = self.settings.control
        identity = controlnet_identity(asked.path)
        return Control(self.branch.module(dtype), asked.picture, asked.scale, identity)

    def _text_encoder(self, dtype: jnp.dtype) -> TextEncoder:
        folder = self.folder / "text_encoder"
        config, params = load_clip_text(folder)
        return text_encoder(
            TextTower(config, dtype), params, self.tokenizer, folder_identity(folder)
        )


def _check(folder: epath.PathLike, settings: Settings) -> _Checked:
    """Reads what is small, and refuses what does not fit."""
    found = local_folder(folder)
    _check_kind(found)
    scheduler = read_scheduler(found / "scheduler")
    sampler = _sampler(scheduler, settings.sampler)
    if settings.start is not None:
        settings.start.skipped(sampler.num_steps)  # refuses a strength that leaves no step
    unet, stage = read_unet_config(found / "unet"), read_stage_config(found / "vae")
    _check_parts(found, unet, stage, read_clip_text_config(found / "text_encoder"))
    tokenizer = load_tokenizer(found / "tokenizer")
    branch = None if settings.control is None else _asked_branch(settings.control, unet, stage)
    size = _size(settings, unet, stage)
    return _Checked(found, unet, stage, tokenizer, scheduler, sampler, size, settings, branch)


def _asked_branch(
    asked: ControlSettings, unet: LatentUNetConfig, stage: FirstStageConfig
) -> ControlNetConfig:
    if not math.isfinite(asked.scale):
        raise ValueError(f"--control_scale={asked.scale}: must be a finite number")
    return branch_of(asked.path, unet, stage)


def check_branch(folder: epath.PathLike, path: epath.PathLike) -> None:
    """Raises ValueError where a branch is for another U-Net than a folder's; reads no weights."""
    found = local_folder(folder)
    branch_of(path, read_unet_config(found / "unet"), read_stage_config(found / "vae"))


def branch_of(
    path: epath.PathLike, unet: LatentUNetConfig, stage: FirstStageConfig
) -> ControlNetConfig:
    """Returns the sizes of a branch. Raises ValueError where it is for another U-Net."""
    where, branch = f"--controlnet={path}", read_controlnet(path, unet)
    for key, field in (
        ("in_channels", "image_channels"),
        ("block_out_channels", "channels"),
        ("layers_per_block", "num_blocks"),
        ("cross_attention_dim", "context_dim"),
    ):
        own, other = getattr(branch.unet, field), getattr(unet, field)
        if own != other:
            raise ValueError(f"{where}: {key} = {own}: must be {other}, unet/ of --model has that")
    if branch.reduction != stage.reduction:
        raise ValueError(
            f"{where}: conditioning_embedding_out_channels = {branch.hint_channels}: halves the "
            f"picture to 1/{branch.reduction}, must be 1/{stage.reduction} as vae/ of --model"
        )
    return branch


def _check_kind(folder: pathlib.Path) -> None:
    where = f"--model={folder}"
    if (folder / "export.json").exists():
        raise ValueError(f"{where}: is an export of this project, draw it with --export={folder}")
    index = folder / INDEX
    if not index.exists():
        raise ValueError(
            f"{where}: has no {INDEX}: must be a folder of Stable Diffusion in diffusers' layout"
        )
    kind = read_object(index).get("_class_name")
    if kind != _KIND:
        raise ValueError(f"{str(index)!r}: _class_name = {shown(kind)}: must be {_KIND!r}")
    missing = [part for part in _PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(
            f"{where}: has no {', '.join(f'{part}/' for part in missing)}: must have "
            f"{', '.join(f'{part}/' for part in _PARTS)}"
        )


def _check_parts(
    folder: pathlib.Path, unet: LatentUNetConfig, stage: FirstStageConfig, text: CLIPTextConfig
) -> None:
    """Raises ValueError where parts are of different models."""
    for key, own, other, part in (
        ("cross_attention_dim", unet.context_dim, text.width, "text_encoder/ is that wide"),
        ("in_channels", unet.image_channels, stage.latent_channels, "vae/ has so many"),
    ):
        if own != other:
            raise ValueError(
                f"{str(folder / 'unet' / 'config.json')!r}: {key} = {own}: must be {other}, {part}"
            )


def _size(settings: Settings, unet: LatentUNetConfig, stage: FirstStageConfig) -> tuple[int, int]:
    """Returns height and width. Raises ValueError where the networks cannot halve them."""
    usual, factor = unet.sample_size * stage.reduction, unet.reduction * stage.reduction
    given, source = _given_size(settings)
    found = []
    for flag, other in zip(("height", "width"), given or (usual, usual), strict=True):
        side = getattr(settings, flag)
        side = other if side is None else side
        if source and side != other:
            raise ValueError(f"--{flag}={side}: must be {other}, that of {source}")
        if side < factor or side % factor:
            of = f"{flag} of {source}" if source else f"--{flag}"
            raise ValueError(
                f"{of}={side}: must be a multiple of {factor}, {stage.reduction} of the first "
                f"stage x {unet.reduction} of the U-Net"
            )
        found.append(side)
    return found[0], found[1]


def _given_size(settings: Settings) -> tuple[tuple[int, int] | None, str]:
    """Returns height and width of the pictures that were given, and the flag of one; None, ""."""
    given = {"--init_image": settings.start, "--control": settings.control}
    sizes = {flag: each.picture.shape[:2] for flag, each in given.items() if each is not None}
    if not sizes:
        return None, ""
    [source, *others] = sizes
    for flag in others:
        if sizes[flag] != sizes[source]:
            own, other = (f"{width} x {height}" for height, width in (sizes[flag], sizes[source]))
            raise ValueError(f"{flag}: is {own}: must be {other} as {source}")
    return sizes[source], source


def _sampler(scheduler: NoiseScheduler, settings: Sequence[str]) -> SamplerConfig:
    """Returns the scheduler's sampler with the settings of the command."""
    changes = parse_overrides(settings, [STAGE])[STAGE]
    sampler = overridden(scheduler.sampler(changes.pop("name", None)), changes, "sampler")
    sampler.validate("sampler")
    if sampler.threshold != "none":
        raise ValueError(
            f"sampler.threshold = {sampler.threshold!r}: must be 'none', latents have no bounds"
        )
    try:
        sampler.timesteps(scheduler.schedule)
    except ValueError as error:
        raise ValueError(f"sampler.num_steps = {sampler.num_steps}: {error}") from error
    return sampler

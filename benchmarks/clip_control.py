"""A control branch of the small base of rendered scenes, for ControlVideo: it follows edges.

It is trained as ControlNet is (Zhang et al. 2023): a copy of the frozen base's encoder, on the
scenes that the base was trained on, each with the edges of the picture itself for a hint.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from etils import epath

from benchmarks.clip_base import BASE, STAGE, base_config
from contextdiff_jax.config import Config, RunConfig, WarmStartConfig
from contextdiff_jax.encoders.controlnet_weights import ControlNetConfig, abstract_controlnet
from contextdiff_jax.encoders.diffusers_configs import unet_config_json
from contextdiff_jax.encoders.diffusers_names import unet_table
from contextdiff_jax.encoders.latent_weights import STEM
from contextdiff_jax.encoders.name_map import from_params
from contextdiff_jax.encoders.tensor_files import write_folder
from contextdiff_jax.runs.build import RUN_PREFIX
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.clip_control import HINTS, ClipControl
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage, LatentTextToImageConfig
from contextdiff_jax.tasks.task_config import Parts, register
from contextdiff_jax.training.task import Batch, Metrics, Params

CONTROL = "control"
HINT_CHANNELS = (16,)  # latents are as large as the pictures
_FOLDER = "controlnet"
_EDGE = 40  # grey levels between neighbours


def edges(pictures: jax.Array) -> jax.Array:
    """Returns the edges of uint8 pictures (..., H, W, 3), white (255) on black, of that shape.

    An edge is where a channel differs by more than 40 grey levels from the pixel below or to the
    right: no colour is left, as of Canny's edges.
    """
    values = pictures.astype(jnp.int32)
    padding = [(0, 0)] * (values.ndim - 3)
    further = jnp.pad(values, (*padding, (0, 1), (0, 1), (0, 0)), mode="edge")
    below, right = further[..., 1:, :-1, :], further[..., :-1, 1:, :]
    steps = jnp.maximum(jnp.abs(below - values), jnp.abs(right - values))
    found = steps.max(axis=-1, keepdims=True) > _EDGE
    return jnp.broadcast_to(jnp.where(found, 255, 0), values.shape).astype(jnp.uint8)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgesToImageConfig(LatentTextToImageConfig):
    """The base with a branch, which the run leaves behind as a folder of ControlNet."""

    draws: ClassVar[bool] = False  # it is no stage of a cascade
    copies: ClassVar[Mapping[str, str]] = {f"{CONTROL}/": "denoiser/"}

    kind: Literal["edges_to_image"] = "edges_to_image"

    def build(self, parts: Parts) -> "EdgesToImage":
        """Returns the task with the condition "text"."""
        task = super().build(parts)
        return EdgesToImage(**_fields(task))

    def finish(self, task: "EdgesToImage", weights: Params, folder: epath.Path) -> None:
        """Writes the branch as a folder of diffusers' ControlNetModel."""
        sizes = ControlNetConfig(self.latent_unet, HINT_CHANNELS)
        abstract = abstract_controlnet(sizes)
        table = unet_table(abstract, len(self.latent_unet.channels))
        tensors = from_params(table, abstract, weights[CONTROL])
        description = unet_config_json(self.latent_unet) | {
            "_class_name": "ControlNetModel",
            "conditioning_embedding_out_channels": list(HINT_CHANNELS),
        }
        write_folder(folder / _FOLDER, description, tensors, STEM)

    def is_finished(self, folder: epath.Path) -> bool:
        """Whether the branch is written; its config.json comes last."""
        return (folder / _FOLDER / "config.json").exists()

    def go_on(self, folder: epath.Path) -> None:
        """Takes the description away."""
        (folder / _FOLDER / "config.json").unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgesToImage(LatentTextToImage):
    """A LatentTextToImage that follows the edges of the pictures themselves."""

    @property
    def branch(self) -> ClipControl:
        """The branch, each picture a frame by itself; its parameters are params["control"]."""
        sizes = ControlNetConfig(self.denoiser.config, HINT_CHANNELS)
        return ClipControl(sizes, None, 1.0, self.denoiser.dtype)

    def init(self, key: jax.Array) -> Params:
        """Returns what LatentTextToImage does, and the branch's."""
        latents, context = jnp.zeros((1, *self.space.shape)), self.denoiser.config.context_dim
        inputs = latents, jnp.ones(1), jnp.zeros((1, 1, context)), jnp.zeros_like(latents)
        branch = self.branch.module.init(jax.random.fold_in(key, 1), *inputs)["params"]
        return super().init(key) | {CONTROL: branch}

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The objective, told the edges of the batch's pictures."""
        return super().loss(params, {**frozen, HINTS: edges(batch["image"])}, batch, key)

    def controlled(
        self,
        params: Params,
        frozen: Any,
        placed: tuple[jax.Array, jax.Array],
        read: Mapping[str, jax.Array],
    ) -> Mapping[str, Any]:
        """Returns what the denoiser reads, and what the branch adds."""
        found = self.branch.residuals(params[CONTROL], frozen, *placed, read["context"])
        return {**read, "residuals": found}


def _fields(made: Any) -> dict[str, Any]:
    """Returns a dataclass' fields, for one of a kind derived from its own."""
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def control_config(folder: epath.Path, seed: int, side: int, steps: tuple[int, int]) -> Config:
    """Returns base_config with the branch's run. steps: of the base, and of the branch."""
    config = base_config(folder, seed, side, steps[0])
    base = config.runs[BASE]
    branch: RunConfig = dataclasses.replace(
        base,
        task=EdgesToImageConfig(**(_fields(base.task) | {"kind": "edges_to_image"})),
        steps=steps[1],
        optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
        start_from=WarmStartConfig(f"{RUN_PREFIX}{BASE}", fresh=(CONTROL,)),
        trainable=(CONTROL,),
    )
    return dataclasses.replace(
        config, pipeline=(*config.pipeline, CONTROL), runs=config.runs | {CONTROL: branch}
    )


def trained_control(folder: epath.Path, seed: int, side: int, steps: tuple[int, int]) -> epath.Path:
    """Trains the branch beside trained_base's, or goes on with that; returns its folder."""
    config = control_config(folder / STAGE, seed, side, steps)
    validate(config)
    train_run(config, CONTROL, folder)
    return folder / CONTROL / _FOLDER

"""The editor: a U-Net of clips on the devices and its programs, of a folder of Stable Diffusion."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import linen as nn

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.encoders.controlnet_weights import (
    abstract_controlnet,
    controlnet_identity,
    load_controlnet,
)
from contextdiff_jax.encoders.frozen import load_image_encoder
from contextdiff_jax.encoders.latent_weights import abstract_unet
from contextdiff_jax.encoders.video_weights import fresh_parts, load_video_unet
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.cascade import Placed, Stage
from contextdiff_jax.generation.clip_programs import ClipNetwork
from contextdiff_jax.generation.editing_config import EditingConfig
from contextdiff_jax.generation.network_file import has_network, load_network
from contextdiff_jax.generation.prompt_edit import PromptEdit, prompt_edit
from contextdiff_jax.generation.word_heatmaps import marked_words
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding
from contextdiff_jax.spaces.pictures import to_uint8
from contextdiff_jax.tasks.clip_adapter import COLOURS, ClipAdapter
from contextdiff_jax.tasks.clip_control import HINTS, ClipControl
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage
from contextdiff_jax.training.failure import NotFinite


class Editor:
    """A U-Net of clips on the devices, and its programs.

    stage: of the folder, `params` those of the inflated U-Net, of the adapter, which `frozen` has
    CLIP's for, and of the control branch.
    """

    def __init__(
        self,
        stage: Stage,
        config: EditingConfig,
        adapter: ClipAdapter | None = None,
        control: ClipControl | None = None,
    ):
        self.stage, self.config = stage, config
        times = stage.sampler.timesteps(stage.task.schedule)
        self.network = ClipNetwork(stage.task, config, times, adapter, control)
        _ = self.network.kept  # refuses a resolution that attention does not have
        self._invert = jit_on_mesh(self.network.invert, stage.mesh)
        self._edit = jit_on_mesh(self.network.edit, stage.mesh)
        self._colours = jit_on_mesh(self.network.colours, stage.mesh)
        self._coverage = jit_on_mesh(self.network.coverage, stage.mesh)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the prompts."""
        [text] = self.stage.task.conditions
        return text.text.tokenizer

    def changes(self, source: str, prompt: str) -> PromptEdit | None:
        """Returns what fusion reads of two prompts; raises as prompt_edit does."""
        if self.config.fusion is None:
            return None
        return prompt_edit(
            self.tokenizer, source, prompt, self.config.fusion, self.config.num_steps
        )

    def for_clip(self, clip: Clip, control: Clip | None = None) -> "Editor":
        """Returns the editor for a clip: its colours, which an adapter reads, and its hints.

        control: what a control branch follows, of as many frames.
        """
        frozen = dict(self.stage.frozen)
        if self.network.adapter is not None:
            frozen[COLOURS] = self._colours(self.stage.frozen, self._placed(clip))
        if self.network.control is not None:
            frozen[HINTS] = self._placed(control)
        return self.replaced(frozen=frozen)

    def replaced(self, **of_stage: Any) -> "Editor":
        """Returns the editor with other weights of its stage; its programs are compiled once."""
        other = copy.copy(self)
        other.stage = dataclasses.replace(self.stage, **of_stage)
        return other

    def _placed(self, clip: Clip) -> jax.Array:
        return distributed.place(clip.frames, batch_sharding(self.stage.mesh))

    def invert(self, clip: Clip, source: str, seed: int) -> tuple[jax.Array, Any]:
        """Returns the path and the maps of a clip; raises NotFinite where a number is none."""
        frames = self._placed(clip)
        told = source if self.config.invert_prompt == "source" else ""
        batches = self._batch(source), self._batch(told)
        path, maps = self._invert(*self._weights(), frames, batches, jax.random.key(seed))
        finite = np.isfinite(distributed.to_host(path)).all(axis=tuple(range(2, path.ndim)))
        if not finite.all():
            step, frame = np.argwhere(~finite[::-1])[0]
            t = int(self.network.times[::-1][step])
            raise NotFinite(
                f"inversion of {clip.name}: step {step}, t = {t}, frame {frame} is not finite (NaN "
                "or infinite); nothing was written"
            )
        return path, maps

    def edit(self, inverted: tuple[jax.Array, Any], source: str, prompt: str) -> "Edited":
        """Returns the edit of an inverted clip; raises NotFinite where a number is none."""
        path, maps = inverted
        changes = self.changes(source, prompt)
        arrays = None if changes is None else dataclasses.asdict(changes)
        batches = self._batch(source), self._batch(prompt)
        words, marks = marked_words(self.tokenizer, self.config.heatmaps, prompt)
        given = (batches, path, maps, arrays, marks if words else None)
        drawn, failed, heat = self._edit(*self._weights(), *given)
        failed = distributed.to_host(failed)
        if failed.any():
            frame = int(np.argmin(np.where(failed, failed, failed.max() + 1)))
            step = int(failed[frame])
            raise NotFinite(
                f"edit {prompt!r}: step {step}, t = {int(self.network.times[step - 1])}, frame "
                f"{frame} is not finite (NaN or infinite); nothing was written"
            )
        coverage = None
        if self.config.reads_masks:
            coverage = distributed.to_host(self._coverage(maps, changes.source_words))
        heat = {kind: distributed.to_host(each) for kind, each in heat.items()}
        return Edited(to_uint8(distributed.to_host(drawn)), coverage, words, heat)

    def _weights(self) -> tuple[Any, Any]:
        return self.stage.params, self.stage.frozen

    def _batch(self, prompt: str) -> dict[str, np.ndarray]:
        return self.stage.task.collate_requests([{"text": prompt}], warn=True)


@dataclasses.dataclass(frozen=True)
class Edited:
    """An edit. frames: uint8 (F, H, W, 3). coverage: what the mask leaves free, (n, F), or None.

    heat: attention to `words`, (F, m, n, W) each, see word_heatmaps.py.
    """

    frames: np.ndarray
    coverage: np.ndarray | None = None
    words: tuple[str, ...] = ()
    heat: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Beside:
    """Folders beside the model's, "" for none.

    tuned: of a U-Net that was tuned on a clip, in the place of the model's own; it is not tuned
    again. image_encoder: CLIP's, for an adapter. controlnet: of a control branch, or its file.
    """

    tuned: str = ""
    image_encoder: str = ""
    controlnet: str = ""

    def check(self, config: EditingConfig) -> None:
        """Raises ValueError where a config needs another one, or does not read one."""
        for flag, key, reads in (
            ("image_encoder", "config.adapter", config.adapter is not None),
            ("controlnet", "config.control_scale", config.control_scale > 0),
        ):
            folder = getattr(self, flag)
            if folder and not reads:
                raise ValueError(f"--{flag}={folder}: only together with {key}")
            if reads and not folder:
                kind = "a CLIP folder" if flag == "image_encoder" else "a ControlNet"
                raise ValueError(f"--{flag} is missing: {key} needs {kind}")
        if self.tuned and config.video is None:
            raise ValueError(
                f"--tuned={self.tuned}: not with config.video = None, which edits each frame alone"
            )


def open_editor(
    model: str, config: EditingConfig, beside: Beside = Beside(), seed: int = 0
) -> Editor:
    """Returns the editor of a folder of Stable Diffusion.

    seed: of temporal parts that begin anew.

    Raises as stable_diffusion.load does, and ValueError where the devices do not divide the frames
    or a folder beside it does not fit.
    """
    beside.check(config)
    if beside.controlnet:
        stable_diffusion.check_branch(model, beside.controlnet)
    settings = stable_diffusion.Settings(
        height=config.height or None,
        width=config.width or None,
        negative=config.negative,
        sampler=(
            "name=ddim",
            f"num_steps={config.num_steps}",
            f"guidance_scale={config.guidance_scale}",
        ),
        dtype=config.dtype,
    )
    [stage] = stable_diffusion.load(model, settings).stages
    return editor_of(stage, config, beside, seed)


def editor_of(stage: Stage, config: EditingConfig, beside: Beside, seed: int) -> Editor:
    """Returns the editor of a stage on the devices; raises as open_editor does."""
    if beside.tuned:
        config = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, steps=0))
    elif config.adapter is not None and not config.tuning.steps:
        logging.warning("config.adapter is zero and changes nothing: config.tuning.steps = 0")
    check_frames(config, stage.mesh)
    adapter, control, params = None, None, {"denoiser": stage.params["denoiser"]}
    placed = Placed(MeshConfig(), stage.mesh)
    if config.adapter is not None:
        adapter = _adapter(stage, config, beside.image_encoder)
        image = placed.add("image encoder", adapter.image.params, adapter.image.boxed)
        stage = dataclasses.replace(stage, frozen=stage.frozen | {adapter.image.identity: image})
    if config.control_scale:
        control = _control(stage, config, beside.controlnet)
        weights = load_controlnet(beside.controlnet, control.sizes)
        boxed = functools.partial(abstract_controlnet, control.sizes)
        params["control"] = placed.add("control branch", weights, boxed)
    stage = dataclasses.replace(stage, params=params)
    return with_weights(Editor(stage, config, adapter, control), beside.tuned, seed)


def check_frames(config: EditingConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where the devices do not divide the frames."""
    count, devices = config.clip.count, mesh.devices.size
    if count % devices:
        raise ValueError(
            f"config.clip.count = {count}: must be a multiple of {devices}, the number of devices, "
            "which share the frames"
        )


def adapter_sizes(task: LatentTextToImage, config: EditingConfig, image_dim: int) -> AdapterConfig:
    """Returns config.adapter for the sizes of the weights; ValueError where they do not fit it."""
    unet = task.denoiser.config
    sizes = dataclasses.replace(
        config.adapter,
        image_channels=unet.image_channels,
        image_dim=image_dim,
        text_dim=unet.context_dim,
    )
    for side in task.space.shape[:2]:
        sizes.check_resolution(side, "a side of the latents for config.adapter.patch_size")
    return sizes


def _adapter(stage: Stage, config: EditingConfig, folder: str) -> ClipAdapter:
    """Returns the adapter for the sizes of the weights."""
    dtype = stage.task.denoiser.dtype
    image = load_image_encoder(folder, dtype)
    sizes = adapter_sizes(stage.task, config, image.width)
    return ClipAdapter(Adapter(sizes, dtype, config.clip.count), image)


def _control(stage: Stage, config: EditingConfig, path: str) -> ClipControl:
    """Returns the control branch for the sizes of the weights."""
    denoiser, space = stage.task.denoiser, stage.task.space
    sizes = stable_diffusion.branch_of(path, denoiser.config, space.stage.config)
    identity = controlnet_identity(path)
    return ClipControl(sizes, config.inflation, config.control_scale, denoiser.dtype, identity)


def with_weights(editor: Editor, tuned: str, seed: int) -> Editor:
    """Returns the editor with the weights of the inflated U-Net, of adapter and control branch.

    tuned: their folder; "" draws what is not there yet.
    """
    stage, config, network = editor.stage, editor.config, editor.network
    params = dict(stage.params)
    placed = Placed(MeshConfig(), stage.mesh)
    if tuned or config.video is not None and config.video.has_parameters:
        params["denoiser"] = _inflated(stage, config, tuned, seed)
    if network.adapter is not None:
        init = functools.partial(network.adapter.init, shape=stage.task.space.shape)
        boxed = jax.eval_shape(init, jax.random.key(0))
        if tuned:
            weights = load_network(tuned, "adapter", boxed)
        else:
            weights = nn.unbox(jit_on_mesh(init, stage.mesh, runs_once=True)(jax.random.key(seed)))
        params["adapter"] = placed.add("adapter", weights, lambda: boxed)
    if network.control is not None and tuned and has_network(tuned, "control"):
        boxed = abstract_controlnet(network.control.sizes)
        weights = load_network(tuned, "control", boxed)
        params["control"] = placed.add("control branch", weights, lambda: boxed)
    return editor.replaced(params=params)


def _inflated(stage: Stage, config: EditingConfig, tuned: str, seed: int) -> Any:
    """Returns the parameters of the inflated U-Net on the devices."""
    sizes, video = stage.task.denoiser.config, config.inflation
    if not tuned:
        host = jax.tree.map(distributed.to_host, stage.params["denoiser"])
        weights = fresh_parts(host, sizes, video, seed)
    else:
        found, weights = load_video_unet(tuned, video, seed)
        if found != sizes:
            raise ValueError(f"--tuned={tuned}: its config.json is of another U-Net than --model's")
    placed = Placed(MeshConfig(), stage.mesh)
    return placed.add("U-Net of clips", weights, lambda: abstract_unet(sizes, video))

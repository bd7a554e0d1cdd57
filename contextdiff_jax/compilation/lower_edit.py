"""Lowers the programs of an edit of a clip for a mesh, from shapes alone: no weights, no clip.

They are what `edit` runs: the tuning step of generation/clip_tuning.py, and the two programs of
generation/clip_programs.py, inversion and drawing. Frames lie over (data, fsdp), weights on every
device.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.compilation.lower import Program, count_scalars
from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.config import Config, EncoderRef, EncodersConfig, RunConfig
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.controlnet_weights import ControlNetConfig, abstract_controlnet
from contextdiff_jax.encoders.latent_weights import abstract_unet
from contextdiff_jax.generation.clip_programs import ClipNetwork
from contextdiff_jax.generation.clip_tuning import (
    check_trainable,
    clip_task,
    encode,
    tuning_optimizer,
)
from contextdiff_jax.generation.editing_config import EditingConfig
from contextdiff_jax.generation.editor import adapter_sizes, check_frames
from contextdiff_jax.generation.prompt_edit import PromptEdit
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.latent_config import (
    LatentUNetConfig,
    stable_diffusion_1,
    stable_diffusion_2,
    tiny_latent_unet,
)
from contextdiff_jax.parallel.audit import audit_copies
from contextdiff_jax.parallel.mesh import BATCH_AXES
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, replicated, shardings_of
from contextdiff_jax.runs.abstract import AbstractEncoders, abstract_task
from contextdiff_jax.sampling.config import published_ddim
from contextdiff_jax.spaces.latents import LatentSpace
from contextdiff_jax.tasks.clip_adapter import COLOURS, ClipAdapter
from contextdiff_jax.tasks.clip_control import HINTS, ClipControl
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage, LatentTextToImageConfig
from contextdiff_jax.training.parameter_names import like
from contextdiff_jax.training.partial import trained_part
from contextdiff_jax.training.random import stream_key
from contextdiff_jax.training.state import abstract_state, by_group, sharded_abstract
from contextdiff_jax.training.step import make_train_step

_IMAGE_ENCODER = "clip-vit-large-patch14"
_RUN = "edit"


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a folder of Stable Diffusion. text, stage: folders whose sizes are known."""

    unet: LatentUNetConfig
    text: str
    stage: str


MODELS = {
    "stable-diffusion-v1-5": Model(
        stable_diffusion_1(), "stable-diffusion-v1-5/text_encoder", "stable-diffusion-v1-5/vae"
    ),
    "stable-diffusion-2-1-base": Model(
        stable_diffusion_2(),
        "stable-diffusion-2-1-base/text_encoder",
        "stable-diffusion-2-1-base/vae",
    ),
    # For tests, with the text encoder of the first.
    "tiny": Model(
        dataclasses.replace(tiny_latent_unet(), context_dim=768),
        "stable-diffusion-v1-5/text_encoder",
        "taesd",
    ),
}
"""Models by name; 1.4 has the sizes of 1.5."""


class EditShapes:
    """The network of an edit, and the shapes of all that its programs read, with their shardings.

    model: of MODELS. Raises ValueError where the config does not fit the model, or the devices do
    not divide the frames.
    """

    def __init__(self, config: EditingConfig, model: str, mesh: Mesh):
        check_frames(config, mesh)
        self.config, self.mesh = config, mesh
        whole = _whole_config(config, MODELS[model])
        task = abstract_task(whole, _RUN)
        if config.height or config.width:
            task = dataclasses.replace(task, space=_sized(task.space, config))
        times = task.sampler.timesteps(task.schedule)
        adapter = None if config.adapter is None else _adapter(task, config, whole)
        control = None
        if config.control_scale:
            sizes, dtype = ControlNetConfig(task.denoiser.config), task.denoiser.dtype
            control = ClipControl(sizes, config.inflation, config.control_scale, dtype)
        self.network = ClipNetwork(task, config, times, adapter, control)
        _ = self.network.kept  # refuses a resolution that attention does not have
        self.frames = self._over_frames((config.clip.count, *task.space.image_shape), jnp.uint8)
        self.batch = self.whole(task.sampled_shapes(1))

    @property
    def boxed(self) -> dict[str, Any]:
        """Shapes of the networks' parameters, boxed with their axes."""
        network, task = self.network, self.network.task
        found = {"denoiser": abstract_unet(task.denoiser.config, self.config.inflation)}
        if network.adapter is not None:
            init = functools.partial(network.adapter.init, shape=task.space.shape)
            found["adapter"] = jax.eval_shape(init, jax.random.key(0))
        if network.control is not None:
            found["control"] = abstract_controlnet(network.control.sizes)
        return found

    @property
    def params(self) -> dict[str, Any]:
        """Shapes of the networks' parameters."""
        return self._placed(self.boxed)

    @property
    def frozen(self) -> dict[str, Any]:
        """Shapes of what is frozen, with the clip's colours and hints where they are read."""
        network, task = self.network, self.network.task
        boxed = task.boxed_frozen()
        found = {
            name: sharded_abstract(tree, shardings_of(boxed[name], self.mesh))
            for name, tree in task.frozen.items()
        }
        if network.adapter is not None:
            image = network.adapter.image
            found[image.identity] = self._placed(image.boxed())
            colours = jax.ShapeDtypeStruct((task.space.shape[-1] + 1, 3), jnp.float32)
            found[COLOURS] = self.whole(colours)
        if network.control is not None:
            found[HINTS] = self.frames
        return found

    def memory(self, params: Any) -> list[str]:
        """Returns the audit's lines of parameters and what is frozen."""
        groups = {"params": params, "frozen": self.frozen}
        return audit_copies(
            {
                name: (tree, jax.tree.map(lambda x: x.sharding, tree))
                for name, tree in groups.items()
            }
        )

    def path_and_maps(self) -> tuple[jax.ShapeDtypeStruct, Any]:
        """Returns the shapes of what `invert` hands to `edit`, its second axis over the devices."""
        args = self.params, self.frozen, self.frames, (self.batch, self.batch), self.key
        sharding = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self.network.invert, *args),
        )

    @property
    def key(self) -> jax.ShapeDtypeStruct:
        """The shape of a key."""
        return self.whole(jax.eval_shape(lambda: jax.random.key(0)))

    def changes(self) -> dict[str, jax.ShapeDtypeStruct] | None:
        """Returns the shapes of a PromptEdit's arrays; None without fusion."""
        if self.config.fusion is None:
            return None
        length = self.network.task.conditions[0].text.tokenizer.max_length
        steps = self.config.fusion.fused_steps(self.config.num_steps)
        sizes = {
            "projection": (length, length),
            "weight": (steps, length),
            "self_on": (steps,),
        }
        names = (field.name for field in dataclasses.fields(PromptEdit))
        arrays = {n: jax.ShapeDtypeStruct(sizes.get(n, (length,)), jnp.float32) for n in names}
        return self.whole(arrays)

    def _over_frames(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

    def over_frames(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Returns a shape with the frames first, over the devices."""
        return self._over_frames(leaf.shape, leaf.dtype)

    def whole(self, tree: Any) -> Any:
        """Returns shapes that every device holds whole."""
        sharding = replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def _placed(self, boxed: Any) -> Any:
        return sharded_abstract(nn.unbox(boxed), shardings_of(boxed, self.mesh))


def _whole_config(config: EditingConfig, model: Model) -> Config:
    """Returns a config whose only run is the model, to build its shapes from."""
    unet = model.unet
    run = RunConfig(
        task=LatentTextToImageConfig(
            latent_unet=unet,
            first_stage=FirstStageRef(model.stage),
            diffusion=DiffusionConfig(schedule="scaled_linear", prediction="eps"),
            sampler=published_ddim(config.num_steps, config.guidance_scale),
        ),
        data=DataConfig(resolution=8 * unet.sample_size),  # of every first stage of MODELS
        batch_size=1,
        steps=1,
    )
    encoders = EncodersConfig(
        text=EncoderRef(path=model.text), clip=EncoderRef(path=_IMAGE_ENCODER)
    )
    return Config(
        name=config.name,
        pipeline=(_RUN,),
        runs={_RUN: run},
        encoders=encoders,
        use_adapter=False,
        dtype=config.dtype,
    )


def _sized(space: LatentSpace, config: EditingConfig) -> LatentSpace:
    """Returns a space of the config's height and width, of its own where they are 0."""
    least = space.stage.config.reduction
    for key in ("height", "width"):
        if getattr(config, key) % least:
            raise ValueError(
                f"config.{key} = {getattr(config, key)}: must be a multiple of {least}"
            )
    height, width = config.height or space.resolution, config.width or space.resolution
    return dataclasses.replace(space, resolution=height, width=width)


def _adapter(task: LatentTextToImage, config: EditingConfig, whole: Config) -> ClipAdapter:
    image = AbstractEncoders(whole).clip_image()
    sizes = adapter_sizes(task, config, image.width)
    return ClipAdapter(Adapter(sizes, task.denoiser.dtype, config.clip.count), image)


def lower_edit(config: EditingConfig, model: str, what: str, mesh: Mesh) -> Program:
    """Lowers one program of an edit.

    what: "train", a tuning step; "invert", the whole inversion; "sample", drawing a whole edit.
    model: of MODELS. Raises ValueError as EditShapes does, and for "train" without tuning.
    """
    shapes = EditShapes(config, model, mesh)
    if what == "train":
        return _lower_tuning(shapes)
    network, batches = shapes.network, (shapes.batch, shapes.batch)
    if what == "invert":
        program, given = network.invert, (shapes.frames, batches, shapes.key)
    else:
        words, changes = None, shapes.changes()
        if config.heatmaps:
            length = network.task.conditions[0].text.tokenizer.max_length
            words = jax.ShapeDtypeStruct((len(config.heatmaps), length), jnp.float32)
        program, given = network.edit, (batches, *shapes.path_and_maps(), changes, words)
    args = (shapes.params, shapes.frozen, *given)
    flops = model_flops(program, *args)
    lowered = jit_on_mesh(program, mesh).lower(*args)
    return Program(lowered, count_scalars(shapes.params), flops, shapes.memory(shapes.params))


def _lower_tuning(shapes: EditShapes) -> Program:
    config, mesh = shapes.config, shapes.mesh
    if not config.tuning.steps:
        raise ValueError(
            "--what=train: must be invert or sample where config.tuning.steps = 0, nothing is tuned"
        )
    part, key = _trained(shapes, "blocks"), stream_key(0, "init")
    optimizer = tuning_optimizer(config.tuning)
    state, shardings = abstract_state(part, optimizer, key, mesh)
    step = make_train_step(part, optimizer, seed=0, ema_decay=0.0)
    memory = audit_copies(by_group(state, shardings) | {"frozen": _group(part.frozen)})
    lowered = jit_on_mesh(step, mesh, donate_argnums=0).lower(
        sharded_abstract(state, shardings), part.frozen, {}
    )
    plain = _trained(shapes, "none")
    gradient = jax.grad(plain.loss, has_aux=True)
    flops = model_flops(gradient, state.params, plain.frozen, {}, key)
    return Program(lowered, count_scalars(state.params), flops, memory)


def _group(tree: Any) -> tuple[Any, Any]:
    """Returns shapes and their shardings, as the audit reads them."""
    return tree, jax.tree.map(lambda leaf: leaf.sharding, tree)


def _trained(shapes: EditShapes, remat: str) -> Any:
    """Returns the tuning's task with what it does not train frozen, all of it in shapes."""
    frozen, network = shapes.frozen, shapes.network
    encoded = jax.eval_shape(
        functools.partial(encode, network), frozen, shapes.frames, shapes.batch
    )
    mean, deviation, context = encoded
    encoded = (
        shapes.over_frames(mean),
        None if deviation is None else shapes.over_frames(deviation),
        shapes.whole(context),
    )
    task = clip_task(network, encoded, shapes.batch["text_mask"], frozen, remat)
    fixed = check_trainable(task, shapes.config.tuning)
    return trained_part(task, like(shapes.params, fixed))


def knobs(mesh: Mapping[str, int], frames: int) -> dict[str, str]:
    """Returns a sentence each on "arguments" and "temporaries", as device_memory.knobs does."""
    chips = f"More chips (now {math.prod(mesh.values())})"
    return {
        "arguments": "Only chips with more memory hold more: every one has all of the weights.",
        "temporaries": f"{chips}, which share the {frames} frames, or a smaller clip.count, height "
        "or width leave fewer temporaries.",
    }

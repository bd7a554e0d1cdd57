"""A config's diffusion tasks in float32 without weights on disk: shapes to count, or random arrays.

`pipeline.build` loads the encoders that a task needs; here only their sizes are known.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.parameters import random_arrays
from contextdiff_jax.config import Config, EncoderRef, RunConfig
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import CLIP_PRESETS, T5_PRESETS, CLIPConfig, T5Config
from contextdiff_jax.encoders.frozen import TextEncoder
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.efficient_unet import EfficientUNet
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.pipeline.build import RUN_PREFIX
from contextdiff_jax.tasks.conditioning import Conditioning, ImageEncoder
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.super_resolution import SuperResolutionTask

# Folders of published weights that configs name -> their sizes.
PUBLISHED = {"t5-v1_1-xxl": T5_PRESETS["xxl"], "clip-vit-base-patch32": CLIP_PRESETS["vit_b32"]}

Fill = Callable[..., Any]  # (f, *abstract arguments) -> like f's result


def shapes(f: Callable, *args: Any) -> Any:
    """Returns the shapes of f(*args)."""
    return jax.eval_shape(f, *args)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A task, its parameters and a batch of tokenized prompts and images: shapes or arrays."""

    task: DiffusionTask
    params: Any
    batch: dict[str, Any]

    def extras(self) -> dict[str, Any]:
        """Returns the denoiser's further inputs in sampling, as shapes."""
        images = jax.ShapeDtypeStruct(self.batch["image"].shape, jnp.float32)
        return jax.eval_shape(self.task.extras, images, jax.random.key(0))


def encoder_sizes(config: Config, ref: EncoderRef) -> CLIPConfig | T5Config:
    """Returns the sizes of the encoder that a config refers to; ValueError for unknown folders."""
    if ref.path.startswith(RUN_PREFIX):
        run = config.runs[ref.path.removeprefix(RUN_PREFIX)]
        return dataclasses.replace(run.clip, vocab_size=run.tokenizer.vocab_size)
    name = ref.path.rstrip("/").rsplit("/", 1)[-1]
    if name not in PUBLISHED:
        raise ValueError(f"encoder {ref.path!r}: sizes are known of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


def build_stage(config: Config, name: str, batch_size: int, fill: Fill, *, adapter: bool) -> Stage:
    """Returns the stage `name` of the config, with or without the adapter and its encoder."""
    run = config.runs[name]
    conditioning, prompts = _conditioning(config, batch_size, fill, adapter)
    task = _task(run, conditioning, adapter)
    side = task.resolution
    batch = prompts | {"image": jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)}
    if fill is random_arrays:
        rng = np.random.default_rng(0)
        batch = {key: _random_input(key, leaf, rng) for key, leaf in batch.items()}
    return Stage(task, _parameters(task, fill, batch), batch)


def _random_input(key: str, leaf: jax.ShapeDtypeStruct, rng: np.random.Generator) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        return jnp.ones(leaf.shape, bool)
    return jnp.asarray(rng.integers(0, 256, leaf.shape), leaf.dtype)


def _conditioning(
    config: Config, batch_size: int, fill: Fill, adapter: bool
) -> tuple[Conditioning, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the encoders and the shapes of tokenized prompts."""
    refs = config.encoders
    text, prompts = _text_encoder(config, refs.text, "text", batch_size, fill)
    prompts["present"] = jax.ShapeDtypeStruct((batch_size,), jnp.bool_)
    if not adapter:
        return Conditioning(text), prompts
    if refs.clip == refs.text:
        clip_text = text
    else:
        clip_text, more = _text_encoder(config, refs.clip, "clip", batch_size, fill)
        prompts |= more
    sizes = encoder_sizes(config, refs.clip)
    module = CLIP(sizes)
    pixels = jax.ShapeDtypeStruct((1, sizes.image_size, sizes.image_size, 3), jnp.float32)
    vision = fill(lambda x: module.init(jax.random.key(0), x, method=CLIP.encode_image), pixels)
    vision = nn.unbox(vision)["params"]
    return Conditioning(text, clip_text, ImageEncoder(module, vision, "clip image")), prompts


def _text_encoder(
    config: Config, ref: EncoderRef, prefix: str, batch_size: int, fill: Fill
) -> tuple[TextEncoder, dict[str, jax.ShapeDtypeStruct]]:
    sizes = encoder_sizes(config, ref)
    length = ref.max_length or sizes.max_length
    ids = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, length), jnp.bool_)
    key = jax.random.key(0)
    if isinstance(sizes, T5Config):
        module = T5Encoder(sizes)
        params = fill(lambda i, m: module.init(key, i, m), ids, mask)
    else:
        sizes = sizes.text
        module = TextTower(sizes)
        params = fill(lambda i: module.init(key, i), ids)
    params = nn.unbox(params)["params"]
    # Nothing here tokenizes: the batch holds ids.
    encoder = TextEncoder(module, params, sizes, None, prefix)
    return encoder, {f"{prefix}_ids": ids, f"{prefix}_mask": mask}


def _task(run: RunConfig, conditioning: Conditioning, adapter: bool) -> DiffusionTask:
    shared = {
        "config": run.diffusion,
        "schedule": make_schedule(run.diffusion.schedule, run.diffusion.num_steps),
        "adapter": Adapter(run.adapter) if adapter else None,
        "conditioning": conditioning,
        "sampler": run.sampler,
        "resolution": run.data.resolution,
    }
    if run.task == "text_to_image":
        return DiffusionTask(denoiser=UNet(run.unet), **shared)
    return SuperResolutionTask(
        denoiser=EfficientUNet(run.efficient_unet),
        low_resolution=run.low_resolution,
        augmentation=run.augmentation,
        **shared,
    )


def _parameters(task: DiffusionTask, fill: Fill, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the trained parameters. `task.init` would compute with the encoders' parameters."""
    key, side = jax.random.key(0), task.resolution
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    times = jax.ShapeDtypeStruct((1,), jnp.float32)
    first = {k: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for k, leaf in batch.items()}
    condition = jax.eval_shape(task.conditioning.encode, task.frozen, first)
    extras = jax.eval_shape(task.extras, images, key)

    def denoiser(x, t, c, extras):
        return task.denoiser.init(key, x, t, text=c.text, text_mask=c.text_mask, **extras)

    def adapter(x, t, tokens, c):
        return task.adapter.init(key, x, t, tokens, c.clip_text, c.clip_mask)

    params = {"denoiser": fill(denoiser, images, times, condition, extras)["params"]}
    if task.adapter is not None:
        tokens = jax.eval_shape(task.conditioning.image_tokens, task.frozen, images)
        params["adapter"] = fill(adapter, images, times, tokens, condition)["params"]
    return nn.unbox(params)

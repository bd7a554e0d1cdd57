"""A config's tasks without weights, data or memory: only shapes, from the encoders' known sizes.

`build` loads what a task needs; here nothing is read but the config, so that a two-billion
parameter stage can be counted, lowered and compiled on a laptop.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from contextdiff_jax.config import Config, EncoderRef, RunConfig
from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import CLIP_PRESETS, T5_PRESETS, CLIPConfig, T5Config
from contextdiff_jax.encoders.frozen import TextEncoder
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.runs.build import (
    RUN_PREFIX,
    compute_dtype,
    diffusion_task,
    text_references,
)
from contextdiff_jax.tasks.conditioning import Conditioning, ImageEncoder, Precomputed
from contextdiff_jax.tasks.contrastive import ContrastiveTask
from contextdiff_jax.tasks.diffusion import DiffusionTask

# Folders of published weights that configs name -> their sizes.
PUBLISHED = {"t5-v1_1-xxl": T5_PRESETS["xxl"], "clip-vit-base-patch32": CLIP_PRESETS["vit_b32"]}


@dataclasses.dataclass(frozen=True)
class SizeOnlyTokenizer:
    """What shapes depend on of a tokenizer; it turns no text into ids."""

    max_length: int
    vocab_size: int


def abstract_task(config: Config, name: str) -> DiffusionTask | ContrastiveTask:
    """Returns the task of run `name`, its frozen parameters ShapeDtypeStructs.

    Raises ValueError for an encoder whose sizes cannot be known from the config.
    """
    run = config.runs[name]
    if run.task == "contrastive":
        sizes = dataclasses.replace(run.clip, vocab_size=run.tokenizer.vocab_size)
        tokenizer = SizeOnlyTokenizer(sizes.max_length, sizes.vocab_size)
        return ContrastiveTask(
            CLIP(sizes, dtype=compute_dtype(config)), tokenizer, run.data.resolution
        )
    return diffusion_task(config, run, abstract_conditioning(config, run))


def abstract_batch(
    task: DiffusionTask | ContrastiveTask, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global training batch: uint8 images and tokenized prompts."""
    side = task.resolution
    image = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    return {"image": image} | task.token_shapes(batch_size)


def abstract_conditioning(config: Config, run: RunConfig) -> Conditioning:
    """Returns the encoders of a diffusion run, in shapes; no text encoder with embeddings."""
    texts = {
        name: (_precomputed if run.data.embeddings else _text_encoder)(config, ref)
        for name, ref in text_references(config).items()
    }
    if not config.use_adapter:
        return Conditioning(texts["text"])
    ref = config.encoders.clip
    module = CLIP(encoder_sizes(config, ref), dtype=compute_dtype(config))
    image = ImageEncoder(module, None, f"image encoder of {ref.path}")
    image = dataclasses.replace(image, params=nn.unbox(image.boxed()))
    return Conditioning(texts["text"], texts.get("clip", texts["text"]), image)


def encoder_sizes(config: Config, ref: EncoderRef) -> CLIPConfig | T5Config:
    """Returns the sizes of the encoder that a config refers to; ValueError for unknown folders."""
    if ref.path.startswith(RUN_PREFIX):
        run = config.runs[ref.path.removeprefix(RUN_PREFIX)]
        return dataclasses.replace(run.clip, vocab_size=run.tokenizer.vocab_size)
    name = ref.path.rstrip("/").rsplit("/", 1)[-1]
    if name not in PUBLISHED:
        raise ValueError(
            f"encoder {ref.path!r}: its sizes must be known, as those of {', '.join(PUBLISHED)} "
            f"and of {RUN_PREFIX}NAME are"
        )
    return PUBLISHED[name]


def _precomputed(config: Config, ref: EncoderRef) -> Precomputed:
    sizes = encoder_sizes(config, ref)
    sizes = sizes if isinstance(sizes, T5Config) else sizes.text
    return Precomputed(ref.path, sizes.width, ref.max_length or sizes.max_length)


def _text_encoder(config: Config, ref: EncoderRef) -> TextEncoder:
    sizes, dtype = encoder_sizes(config, ref), compute_dtype(config)
    tokenizer = SizeOnlyTokenizer(ref.max_length or sizes.max_length, sizes.vocab_size)
    if isinstance(sizes, T5Config):
        module: Any = T5Encoder(sizes, dtype)
    else:
        sizes = sizes.text
        module = TextTower(sizes, dtype)
    encoder = TextEncoder(module, None, sizes, tokenizer, f"text encoder of {ref.path}")
    shapes = nn.unbox(encoder.boxed())
    # Held in the compute dtype, as build loads it.
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype)), shapes)
    return dataclasses.replace(encoder, params=params)

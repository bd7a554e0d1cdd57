"""A config's tasks without weights, data or memory: only shapes, from the encoders' known sizes.

`build` loads what a task needs; here nothing is read but the config, so that a two-billion
parameter stage can be counted, lowered and compiled on a laptop.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from contextdiff_jax.config import Config, EncoderRef
from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import (
    CLIP_PRESETS,
    STABLE_DIFFUSION_1_TEXT,
    STABLE_DIFFUSION_2_TEXT,
    T5_PRESETS,
    CLIPConfig,
    CLIPTextConfig,
    T5Config,
)
from contextdiff_jax.encoders.frozen import (
    FrozenStage,
    ImageEncoder,
    SizeOnlyTokenizer,
    StoredTokens,
    TextEncoder,
)
from contextdiff_jax.encoders.latent_weights import first_stage
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.networks.latent_config import kl_f8, taef2, taesd
from contextdiff_jax.runs.build import (
    RUN_PREFIX,
    NamedEncoders,
    build_task,
    compute_dtype,
    text_references,
)
from contextdiff_jax.training.partial import fixed_shapes, trained_part
from contextdiff_jax.training.task import Task

# Folders of published weights that configs name, by how their paths end -> their sizes.
PUBLISHED = {
    "t5-v1_1-xxl": T5_PRESETS["xxl"],
    "clip-vit-base-patch32": CLIP_PRESETS["vit_b32"],
    "clip-vit-large-patch14": CLIP_PRESETS["vit_l14"],
    "stable-diffusion-v1-5/text_encoder": STABLE_DIFFUSION_1_TEXT,
    "stable-diffusion-2-1-base/text_encoder": STABLE_DIFFUSION_2_TEXT,
}
STAGES = {
    "stable-diffusion-v1-5/vae": kl_f8(),
    "stable-diffusion-2-1-base/vae": kl_f8(),
    "taesd": taesd(),
    "taef2": taef2(),
}


class UnknownSizes(ValueError):
    """An encoder's sizes cannot be known from the config."""


def abstract_task(config: Config, name: str) -> Task:
    """Returns the task of run `name`, its frozen parameters ShapeDtypeStructs.

    Raises UnknownSizes for an encoder whose sizes cannot be known from the config.
    """
    return build_task(
        config, name, AbstractEncoders(config, bool(config.runs[name].data.embeddings))
    )


def abstract_trained_task(config: Config, name: str) -> Task:
    """Returns `abstract_task` as the loop trains it: with what the run does not train frozen."""
    task = abstract_task(config, name)
    key = f"config.runs.{name}.trainable"
    return trained_part(task, fixed_shapes(task, config.runs[name].trainable, key))


class AbstractEncoders(NamedEncoders):
    """The encoders in shapes. stored: text comes as stored tokens."""

    def __init__(self, config: Config, stored: bool = False):
        super().__init__(config)
        self._stored = stored

    def _make_text(self, name: str) -> TextEncoder | StoredTokens:
        make = _stored_tokens if self._stored else _text_encoder
        return make(self._config, text_references(self._config)[name])

    def _make_image(self) -> ImageEncoder:
        ref = self._config.encoders.clip
        module = CLIP(encoder_sizes(self._config, ref), dtype=compute_dtype(self._config))
        image = ImageEncoder(module, None, f"image encoder of {ref.path}")
        return dataclasses.replace(image, params=nn.unbox(image.boxed()))

    def _make_stage(self, path: str) -> FrozenStage:
        sizes = _published(path, STAGES)
        if sizes is None:
            raise UnknownSizes(
                f"first stage {path!r}: its sizes must be known, as those of {', '.join(STAGES)}"
            )
        module = first_stage(sizes, compute_dtype(self._config))
        stage = FrozenStage(module, None, f"first stage of {path}")
        return dataclasses.replace(stage, params=nn.unbox(stage.boxed()))


def encoder_sizes(config: Config, ref: EncoderRef) -> CLIPConfig | CLIPTextConfig | T5Config:
    """Returns the sizes of the encoder that a config refers to; UnknownSizes for other folders."""
    if ref.path.startswith(RUN_PREFIX):
        return config.runs[ref.path.removeprefix(RUN_PREFIX)].task.encoder_config
    known = _published(ref.path, PUBLISHED)
    if known is None:
        raise UnknownSizes(
            f"encoder {ref.path!r}: its sizes must be known, as those of {', '.join(PUBLISHED)} "
            f"and of {RUN_PREFIX}NAME are"
        )
    return known


def _published(path: str, known: Mapping[str, Any]) -> Any:
    """Returns what is known of the folder that a path ends in; None for others."""
    ends = ("/".join(path.rstrip("/").split("/")[-parts:]) for parts in (1, 2))
    return next((known[end] for end in ends if end in known), None)


def _stored_tokens(config: Config, ref: EncoderRef) -> StoredTokens:
    sizes = encoder_sizes(config, ref)
    sizes = sizes.text if isinstance(sizes, CLIPConfig) else sizes
    return StoredTokens(ref.path, sizes.width, ref.max_length or sizes.max_length)


def _text_encoder(config: Config, ref: EncoderRef) -> TextEncoder:
    sizes, dtype = encoder_sizes(config, ref), compute_dtype(config)
    tokenizer = SizeOnlyTokenizer(ref.max_length or sizes.max_length, sizes.vocab_size)
    if isinstance(sizes, T5Config):
        module: Any = T5Encoder(sizes, dtype)
    else:
        sizes = sizes.text if isinstance(sizes, CLIPConfig) else sizes
        module = TextTower(sizes, dtype)
    encoder = TextEncoder(module, None, sizes, tokenizer, f"text encoder of {ref.path}")
    shapes = nn.unbox(encoder.boxed())
    # Held in the compute dtype, as build loads it.
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype)), shapes)
    return dataclasses.replace(encoder, params=params)

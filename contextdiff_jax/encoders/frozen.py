"""Frozen encoders as pure functions of their parameters: images and texts to tokens.

Parameters are passed in at every call and never closed over, so that they can be sharded and
donated to a compiled step as inputs; they stay outside training states and checkpoints.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.encoders.clip import CLIP, TextTower
from contextdiff_jax.encoders.config import CLIPTextConfig, T5Config
from contextdiff_jax.encoders.latent_weights import (
    FirstStage,
    abstract_first_stage,
    first_stage,
    first_stage_identity,
    first_stage_sizes,
    load_first_stage,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.preprocess import clip_preprocess
from contextdiff_jax.encoders.single_file import (
    load_single_file_stage,
    single_file_in,
    single_file_stage_identity,
    single_file_stage_sizes,
)
from contextdiff_jax.encoders.t5 import T5Encoder
from contextdiff_jax.encoders.tokenizers import Tokenizer, load_tokenizer
from contextdiff_jax.encoders.weights import (
    folder_identity,
    load_clip,
    load_clip_text,
    load_t5,
)
from contextdiff_jax.networks.latent_config import FirstStageConfig

Kind = Literal["clip", "t5"]
Folder = TypeVar("Folder", bound=pathlib.PurePath)

TEXT_ENCODER = "text_encoder"  # of a published pipeline's folder


def clip_image_tokens(module: CLIP, params: Any, images: jax.Array) -> jax.Array:
    """Encodes images (B, H, W, 3) in [-1, 1] of any size into CLIP image tokens.

    Returns (B, 1 + grid^2, vision_width) float32, class token first, differentiable in `images`.
    """
    pixels = clip_preprocess(images, module.config.image_size)
    return module.apply({"params": params}, pixels, method=CLIP.encode_image)[0]


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """CLIP's vision tower with its parameters (numpy, as loaded) and their identity."""

    module: CLIP
    params: Any
    identity: str

    @property
    def width(self) -> int:
        """Width of the image tokens."""
        return self.module.config.vision_width

    def boxed(self) -> Any:
        """Returns the shapes of the parameters, boxed with their logical axis names."""
        side = self.module.config.image_size
        init = functools.partial(self.module.init, method=CLIP.encode_image)
        return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]

    def tokens(self, params: Any, images: jax.Array) -> jax.Array:
        """Returns `clip_image_tokens` of images; pure in `params`."""
        return clip_image_tokens(self.module, params, images)


@dataclasses.dataclass(frozen=True)
class FrozenStage:
    """A first stage with its parameters (numpy, as loaded) and their identity."""

    module: FirstStage
    params: Any
    identity: str

    def boxed(self) -> Any:
        """Returns the shapes of the parameters, boxed with their logical axis names."""
        return abstract_first_stage(self.module.config)


def load_frozen_stage(folder: str | pathlib.Path, dtype: Any = jnp.float32) -> FrozenStage:
    """Loads the first stage of a folder, or of CompVis' single file in it.

    dtype: compute dtype. Raises as load_first_stage and load_single_file_stage do.
    """
    file = single_file_in(folder)
    if file is not None:
        config, params = load_single_file_stage(file)
        return FrozenStage(first_stage(config, dtype), params, single_file_stage_identity(file))
    config, params = load_first_stage(folder)
    return FrozenStage(first_stage(config, dtype), params, first_stage_identity(folder))


def frozen_stage_sizes(folder: str | pathlib.Path) -> FirstStageConfig:
    """Returns the sizes of what `load_frozen_stage` loads, without reading weights."""
    file = single_file_in(folder)
    return first_stage_sizes(folder) if file is None else single_file_stage_sizes(file)


@dataclasses.dataclass(frozen=True)
class SizeOnlyTokenizer:
    """What shapes depend on of a tokenizer; it turns no text into ids."""

    max_length: int
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class StoredTokens:
    """Stands for a text encoder that is not loaded: its tokens come with the batch.

    identity, width, max_length: as the TextEncoder's.
    """

    identity: str
    width: int
    max_length: int


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A frozen text encoder with its tokenizer.

    module: the Flax module. params: its parameters, numpy arrays as loaded. config: its sizes.
    tokenizer: turns texts into ids and masks. identity: of weights and vocabulary together.
    """

    module: TextTower | T5Encoder
    params: Any
    config: CLIPTextConfig | T5Config
    tokenizer: Tokenizer
    identity: str

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.config.width

    @property
    def max_length(self) -> int:
        """Number of tokens per text, padding included."""
        return self.tokenizer.max_length

    def boxed(self) -> Any:
        """Returns the shapes of the parameters, boxed with their logical axis names."""
        ids = jnp.zeros((1, self.max_length), jnp.int32)
        inputs = (ids, ids > 0) if isinstance(self.module, T5Encoder) else (ids,)
        return jax.eval_shape(self.module.init, jax.random.key(0), *inputs)["params"]

    def encode(
        self, params: Any, input_ids: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes ids (B, L) int with mask (B, L) bool, as the tokenizer returns them.

        Pure in `params`, of the structure of self.params. Returns tokens (B, L, width) float32,
        zero where masked, and the mask.
        """
        tokens = self.encode_whole(params, input_ids, mask)
        return jnp.where(mask[..., None], tokens, 0.0), mask

    def encode_whole(self, params: Any, input_ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the tokens of `encode` with those behind the end of the text as they are."""
        if isinstance(self.module, T5Encoder):
            return self.module.apply({"params": params}, input_ids, mask)
        return self.module.apply({"params": params}, input_ids)[0]


def load_image_encoder(folder: str | pathlib.Path, dtype: Any = jnp.float32) -> ImageEncoder:
    """Loads the vision tower of a CLIP folder. Raises as load_clip does."""
    config, params = load_clip(folder)
    vision = {key: params[key] for key in ("vision_model", "visual_projection", "logit_scale")}
    return ImageEncoder(CLIP(config, dtype=dtype), vision, folder_identity(folder))


def load_text_encoder(
    kind: Kind,
    folder: str | pathlib.Path,
    dtype: Any = jnp.float32,
    *,
    param_dtype: Any = np.float32,
    max_length: int | None = None,
) -> TextEncoder:
    """Loads a text encoder and its tokenizer, which is in the folder or its "tokenizer" sub-folder.

    Args:
      kind: "clip" or "t5" (v1.1).
      folder: Hugging Face folder.
      dtype: compute dtype.
      param_dtype: dtype the parameters are held in; bfloat16 halves T5-XXL's 19 GB.
      max_length: tokens per text; None takes what the tokenizer records (T5's records none).

    Raises:
      FileNotFoundError, ValueError: as load_clip, load_t5 and load_tokenizer do, or tokenizer and
        weights do not belong together.
    """
    loaders = {"clip": (load_clip_text, TextTower), "t5": (load_t5, T5Encoder)}
    if kind not in loaders:
        raise ValueError(f"kind = {kind!r}: must be one of {', '.join(loaders)}")
    load, tower = loaders[kind]
    config, params = load(folder, param_dtype)
    tokenizer = folder_tokenizer(folder, max_length)
    return text_encoder(tower(config, dtype), params, tokenizer, folder_identity(folder))


def text_encoder_identity(
    folder: str | pathlib.Path, max_length: int | None = None
) -> tuple[str, int]:
    """Returns identity and max_length of the text encoder in a folder, without loading it.

    The weights are read once, tensor by tensor. Raises as load_text_encoder does.
    """
    tokenizer = folder_tokenizer(folder, max_length)
    return _identity(folder_identity(folder), tokenizer), tokenizer.max_length


def folder_tokenizer(folder: str | pathlib.Path, max_length: int | None = None) -> Tokenizer:
    """Loads the tokenizer of an encoder's folder, see `tokenizer_folder`."""
    return load_tokenizer(tokenizer_folder(local_folder(folder)), max_length)


def tokenizer_folder(folder: Folder) -> Folder:
    """Returns where the tokenizer of an encoder's folder lies.

    In its "tokenizer" sub-folder, or beside a text_encoder/ of Stable Diffusion, or in the folder.
    """
    inner, beside = folder / "tokenizer", folder.parent / "tokenizer"
    if inner.is_dir():
        return inner
    return beside if folder.name == TEXT_ENCODER and beside.is_dir() else folder


def _identity(weights_identity: str, tokenizer: Tokenizer) -> str:
    return f"{weights_identity}/{tokenizer.identity}"


def text_encoder(
    module: TextTower | T5Encoder, params: Any, tokenizer: Tokenizer, weights_identity: str
) -> TextEncoder:
    """Joins a module, its parameters and a tokenizer that fits them.

    Raises ValueError where the tokenizer has more ids or longer rows than the module, or ends
    texts by another token than it pools at.
    """
    config = module.config
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"tokenizer has {tokenizer.vocab_size} ids, the text encoder {config.vocab_size}"
        )
    if isinstance(config, CLIPTextConfig):
        largest = config.eot_token_id is None
        eot = tokenizer.vocab_size - 1 if largest else config.eot_token_id
        if tokenizer.max_length > config.max_length:
            raise ValueError(
                f"max_length = {tokenizer.max_length}: "
                f"must not exceed the text encoder's {config.max_length}"
            )
        if tokenizer.eot_token_id != eot:
            raise ValueError(
                f"tokenizer ends texts by token {tokenizer.eot_token_id}, the text encoder by {eot}"
            )
    identity = _identity(weights_identity, tokenizer)
    return TextEncoder(module, params, config, tokenizer, identity)

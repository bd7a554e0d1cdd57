"""Contrastive language-image training (Radford et al., 2021): aligned encoders for a new domain."""

import dataclasses
import string
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.sources import sample_captions
from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.config import CLIPConfig
from contextdiff_jax.encoders.frozen import SizeOnlyTokenizer
from contextdiff_jax.encoders.preprocess import clip_preprocess
from contextdiff_jax.encoders.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from contextdiff_jax.encoders.weights import save_clip_folder
from contextdiff_jax.parallel import distributed
from contextdiff_jax.spaces.pixels import from_uint8
from contextdiff_jax.tasks.task_config import Parts, TaskConfig, register
from contextdiff_jax.training.task import Batch, Metrics, Params

ENCODER_FOLDER = "encoder"  # inside a finished run's
_MARK = "finished"  # inside that, once all of it is there
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)
_NEVER = -1e9  # the logit of a text that is not there
_MARKS = ".,;:!?"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer of a contrastive run: one from a folder, or one trained on its captions.

    path: local folder with a tokenizer; empty trains one of vocab_size entries on the first
    sample captions of the run's data.
    """

    path: str = ""
    vocab_size: int = 1024
    sample: int = 20_000


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(TaskConfig):
    """Encoders of text and images, trained on the run's own data; others read them as "run:NAME".

    clip: their sizes; vocab_size and eot_token_id are the tokenizer's.
    exchange_around: phrases like "left of" that make hard negatives (NegCLIP, Yuksekgonul et al.
    2023): beside "a cat left of a dog" every image is compared with "a dog left of a cat". Without
    them CLIP learns which words a caption has, and not their order. For captions of the form "X
    PHRASE Y"; not for phrases that mean the same both ways, such as "next to". That "Y left of X"
    may be true of an image whose caption says "X right of Y" is not known here.
    """

    clip: CLIPConfig
    kind: Literal["contrastive"] = "contrastive"
    tokenizer: TokenizerConfig = TokenizerConfig()
    exchange_around: tuple[str, ...] = ()

    def validate(self, where: str, data: DataConfig, use_adapter: bool) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        self.clip.validate(f"{where}.clip")
        for phrase in self.exchange_around:
            if not phrase or phrase != " ".join(phrase.split()):
                raise ValueError(
                    f"{where}.exchange_around has {phrase!r}; allowed are phrases of one or more "
                    "words with single spaces, like 'left of'."
                )

    @property
    def encoder_config(self) -> CLIPConfig:
        """The sizes of the encoder, as far as they are known before its tokenizer is."""
        return dataclasses.replace(self.clip, vocab_size=self.tokenizer.vocab_size)

    def build(self, parts: Parts) -> "ContrastiveTask":
        """Returns the task; its tokenizer is made in the run's folder if it must be."""
        if parts.source is None:
            sizes = self.encoder_config
            tokenizer = SizeOnlyTokenizer(sizes.max_length, sizes.vocab_size)
        else:
            tokenizer = self._tokenizer(parts)
            sizes = dataclasses.replace(
                self.clip, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id
            )
        clip = CLIP(sizes, dtype=parts.dtype)
        return ContrastiveTask(clip, tokenizer, parts.data.resolution, self.exchange_around)

    def _tokenizer(self, parts: Parts) -> Tokenizer:
        settings, length = self.tokenizer, self.clip.max_length
        if settings.path:
            return load_tokenizer(settings.path, length)
        folder = parts.folder / "tokenizer"
        if distributed.is_main() and not (folder / "tokenizer.json").exists():
            captions = sample_captions(parts.source, settings.sample, parts.seed)
            train_tokenizer(captions, settings.vocab_size, length, folder)
        distributed.wait_for_all("tokenizer")
        return load_tokenizer(folder, length)

    def finish(self, task: "ContrastiveTask", weights: Params, folder: epath.Path) -> None:
        """Writes the encoder with its tokenizer beside it, so that one folder holds both."""
        encoder = folder / ENCODER_FOLDER
        save_clip_folder(encoder, task.clip.config, weights["clip"])
        source = epath.Path(self.tokenizer.path) if self.tokenizer.path else folder / "tokenizer"
        (encoder / "tokenizer").mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (source / name).exists():
                (source / name).copy(encoder / "tokenizer" / name, overwrite=True)
        (encoder / _MARK).write_text("")

    def is_finished(self, folder: epath.Path) -> bool:
        """Whether the encoder is written, all of it."""
        return (folder / ENCODER_FOLDER / _MARK).exists()

    def go_on(self, folder: epath.Path) -> None:
        """Takes the mark away; the encoder can be read until it is written anew."""
        (folder / ENCODER_FOLDER / _MARK).unlink(missing_ok=True)


def exchanged(caption: str, phrases: Sequence[str]) -> str:
    """Returns the caption with what stands before and after the first of the phrases exchanged.

    "a cat left of a dog." becomes "a dog left of a cat."; upper and lower case stay as they are.
    Returned unchanged: a caption with none of the phrases as whole words between others, with the
    same on both sides, or with a mark (.,;:!?) before its end, which would come to stand elsewhere.
    """
    text = caption.rstrip(_MARKS + string.whitespace)
    words = text.split()
    lower = [word.lower() for word in words]
    longest_first = sorted((phrase.lower().split() for phrase in phrases), key=len, reverse=True)
    for start in range(1, len(words)):
        for phrase in longest_first:
            end = start + len(phrase)
            if lower[start:end] == phrase and end < len(words):
                if lower[:start] == lower[end:] or any(mark in text for mark in _MARKS):
                    return caption
                exchange = " ".join([*words[end:], *words[start:end], *words[:start]])
                return exchange + caption[len(text) :].strip()
    return caption


@dataclasses.dataclass(frozen=True)
class ContrastiveTask:
    """CLIP from scratch on (image, caption) pairs; the symmetric cross-entropy over the batch.

    exchange_around: see ContrastiveConfig.
    """

    clip: CLIP
    tokenizer: Tokenizer | SizeOnlyTokenizer
    resolution: int
    exchange_around: tuple[str, ...] = ()
    frozen: Any = dataclasses.field(default_factory=dict)

    def identities(self) -> dict[str, str]:
        """Nothing is frozen."""
        return {}

    def collate(self, captions: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays `loss` reads of captions."""
        ids, _ = self.tokenizer(captions, warn=warn)
        if not self.exchange_around:
            return {"text_ids": ids}
        negatives = [exchanged(caption, self.exchange_around) for caption in captions]
        return {"text_ids": ids, "negative_ids": self.tokenizer(negatives)[0]}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a training batch: uint8 images and the arrays of `collate`."""
        side = self.resolution
        ids = jax.ShapeDtypeStruct((batch_size, self.tokenizer.max_length), jnp.int32)
        names = ("text_ids", "negative_ids") if self.exchange_around else ("text_ids",)
        image = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
        return {"image": image} | dict.fromkeys(names, ids)

    def boxed_frozen(self) -> Any:
        """Nothing is frozen."""
        return {}

    def init(self, key: jax.Array) -> Params:
        """Returns {"clip": ...}, boxed with logical axis names."""
        side = self.clip.config.image_size
        ids = jnp.zeros((1, self.clip.config.max_length), jnp.int32)
        return {"clip": self.clip.init(key, ids, jnp.zeros((1, side, side, 3)))["params"]}

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Mean of image-to-text and text-to-image cross-entropy; captions that recur count once.

        Pairs with equal captions are not negatives of each other: small domains repeat captions.
        Exchanged captions (`exchange_around`) are more texts for the images to choose from.
        """
        pixels = clip_preprocess(from_uint8(batch["image"]), self.clip.config.image_size)
        captions = texts = batch["text_ids"]
        is_choice = jnp.ones(len(captions), bool)
        if self.exchange_around:
            negatives = batch["negative_ids"]
            texts = jnp.concatenate([captions, negatives])
            changed = jnp.any(negatives != captions, axis=-1)
            is_choice = jnp.concatenate([is_choice, changed])
        logits = self.clip.apply({"params": params["clip"]}, texts, pixels)
        same = jnp.all(captions[:, None] == texts[None], axis=-1)
        choices = jnp.where(is_choice, logits, _NEVER)
        by_image = _cross_entropy(choices, same & is_choice)
        by_text = _cross_entropy(logits[:, : len(captions)].T, same[:, : len(captions)])
        right = jnp.take_along_axis(same, jnp.argmax(choices, axis=1)[:, None], axis=1)
        return jnp.mean(by_image + by_text) / 2, {"accuracy": jnp.mean(right)}

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Nothing beyond the loss."""
        return {}

    def preview(self, params: Params, frozen: Any, seed: int) -> None:
        """Encoders draw nothing."""
        return


def _cross_entropy(logits: jax.Array, right: jax.Array) -> jax.Array:
    """Returns that of each row (B,), whose right columns (B, N) share the target equally."""
    target = right / jnp.sum(right, axis=1, keepdims=True)
    return -jnp.sum(target * jax.nn.log_softmax(logits, axis=1), axis=1)

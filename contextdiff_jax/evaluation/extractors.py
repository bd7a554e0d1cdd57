"""The networks that images and texts are compared by: Inception v3 and CLIP, from their files."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.frozen import folder_tokenizer
from contextdiff_jax.encoders.inception import IMAGE_SIZE
from contextdiff_jax.encoders.inception_weights import load_inception
from contextdiff_jax.encoders.tokenizers import Tokenizer
from contextdiff_jax.encoders.weights import folder_identity, load_clip
from contextdiff_jax.evaluation.extraction import FeatureExtractor
from contextdiff_jax.evaluation.resizing import CLIP_PROTOCOL, inception_protocol

INCEPTION = "inception_v3_2015"
CLIP_LAYER = "image_embedding"


def inception_extractor(
    path: str | pathlib.Path,
    features: Sequence[str] = ("2048",),
    protocol: str = "torch-fidelity",
    dtype: Any = jnp.float32,
) -> FeatureExtractor:
    """Loads Inception v3; its layers are `features`, named as in encoders/inception.py.

    Args:
      path: safetensors file, as load_inception reads it.
      features: e.g. ("2048", "logits_unbiased") for FID and Inception Score.
      protocol: a name in resizing.PROTOCOLS.
      dtype: compute dtype; anything but float32 gives other numbers than other tools.

    Raises:
      FileNotFoundError, ValueError: as load_inception does, or the protocol is unknown.
    """
    resize = inception_protocol(protocol)
    module, params, weights = load_inception(path, features)
    module = module.clone(dtype=dtype)

    def apply(params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        return module.apply({"params": params}, pixels)

    return FeatureExtractor(INCEPTION, params, apply, resize, IMAGE_SIZE, weights)


class TextEmbedder:
    """CLIP's text embeddings, in full batches on all local devices."""

    def __init__(self, module: CLIP, params: Any, tokenizer: Tokenizer, batch_size: int = 64):
        mesh = Mesh(np.asarray(jax.local_devices(), dtype=object), ("data",))
        self._tokenizer = tokenizer
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

        def embed(params: Any, ids: np.ndarray) -> jax.Array:
            with jax.default_matmul_precision("highest"):  # as of the images it is compared with
                return module.apply({"params": params}, ids, method=CLIP.encode_text)[1]

        self._program = jax.jit(embed)

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns embeddings (N, D) float32, not normalized; a warning names words cut off."""
        if not captions:
            raise ValueError("0 captions: embeddings need at least 1")
        ids, _ = self._tokenizer(list(captions), warn=True)
        parts = []
        for start in range(0, len(ids), self._batch_size):
            # Filled up so that the last batch runs the same compiled program.
            rows = np.resize(
                ids[start : start + self._batch_size], (self._batch_size, ids.shape[1])
            )
            parts.append(self._program(self._params, jax.device_put(rows, self._rows)))
        return np.concatenate([np.asarray(part) for part in parts])[: len(ids)]


def clip_extractors(
    folder: str | pathlib.Path, dtype: Any = jnp.float32, batch_size: int = 64
) -> tuple[FeatureExtractor, TextEmbedder]:
    """Loads a CLIP folder with its tokenizer: for images (one layer, CLIP_LAYER), for texts.

    Both give embeddings of the joint space, not normalized. Raises as load_clip and load_tokenizer
    do.
    """
    config, params = load_clip(folder)
    module = CLIP(config, dtype)
    vision = {name: params[name] for name in ("vision_model", "visual_projection", "logit_scale")}
    text = {name: params[name] for name in ("text_model", "text_projection", "logit_scale")}

    def apply(params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        return {CLIP_LAYER: module.apply({"params": params}, pixels, method=CLIP.encode_image)[1]}

    extractor = FeatureExtractor(
        "clip",
        vision,
        apply,
        CLIP_PROTOCOL,
        config.image_size,
        {CLIP_LAYER: folder_identity(folder)},
    )
    return extractor, TextEmbedder(module, text, folder_tokenizer(folder), batch_size)

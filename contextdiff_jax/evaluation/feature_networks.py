"""The networks that an evaluation scores by, as its settings name them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from contextdiff_jax.config import Config
from contextdiff_jax.encoders.inception import SPATIAL
from contextdiff_jax.evaluation.extraction import Extraction, FeatureExtractor, collect
from contextdiff_jax.evaluation.extractors import (
    CLIP_LAYER,
    TextEmbedder,
    clip_extractors,
    inception_extractor,
)
from contextdiff_jax.evaluation.statistics import FeatureIdentity
from contextdiff_jax.runs.build import Locate

CLIP_FEATURES = "clip"
LOGITS = "logits_unbiased"
# What a weights file may hold, the best first.
_LAYERS = (("2048", LOGITS), ("2048",), ("768",))
_NAMES = {"2048": "FID", "768": "FID-768", CLIP_LAYER: "Frechet distance on CLIP features"}


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A network on the devices. layer: the one that the Frechet distance is of."""

    extraction: Extraction
    layer: str

    @property
    def extractor(self) -> FeatureExtractor:
        """The network with its weights and resizing protocol."""
        return self.extraction.extractor

    @property
    def identity(self) -> FeatureIdentity:
        """What makes its features comparable."""
        return self.extractor.identity(self.layer)

    @property
    def record(self) -> dict[str, Any]:
        """What features kept in files are told apart by: layers beyond `fid`'s, too."""
        more = {"with": SPATIAL} if SPATIAL in self.extractor.layers else {}
        return self.identity.to_json() | more

    @property
    def distance_name(self) -> str:
        """What the Frechet distance of these features is called."""
        return _NAMES[self.layer]

    @property
    def dimension(self) -> int:
        """Number of features."""
        return self.width(self.layer)

    def width(self, layer: str) -> int:
        """Returns the number of features of one of the network's layers."""
        extractor = self.extractor
        pixels = jax.ShapeDtypeStruct((1, extractor.size, extractor.size, 3), np.float32)
        return jax.eval_shape(extractor.apply, extractor.params, pixels)[layer].shape[1]

    def extract(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {layer: (N, D) float32} of pictures (N, H, W, 3) uint8."""
        return collect(self.extraction([pictures]))


@dataclasses.dataclass(frozen=True)
class FeatureNetworks:
    """frechet: of the distance to real images. clip, texts: of the CLIP score."""

    frechet: FeatureNetwork
    clip: FeatureNetwork
    texts: TextEmbedder


def load_networks(
    features: str, resize: str, clip_folder: epath.PathLike, batch_size: int
) -> FeatureNetworks:
    """Loads CLIP, and Inception where `features` is the path of its weights.

    Raises ValueError or FileNotFoundError, as the loaders do, for files that are not there or hold
    something else.
    """
    extractor, texts = clip_extractors(clip_folder, batch_size=batch_size)
    clip = FeatureNetwork(Extraction(extractor, batch_size), CLIP_LAYER)
    if features == CLIP_FEATURES:
        return FeatureNetworks(clip, clip, texts)
    return FeatureNetworks(inception_network(features, resize, batch_size), clip, texts)


def inception_network(
    path: str,
    resize: str,
    batch_size: int,
    choices: Sequence[tuple[str, ...]] = _LAYERS,
) -> FeatureNetwork:
    """Loads Inception with the first of `choices` of layers that the file has the weights for.

    The first layer of it is the Frechet distance's. Raises as load_networks does.
    """
    extractor = _load_inception(path, resize, choices)
    return FeatureNetwork(Extraction(extractor, batch_size), extractor.layers[0])


def _load_inception(path: str, resize: str, choices: Sequence[tuple[str, ...]]) -> FeatureExtractor:
    for layers in choices[:-1]:
        try:
            return inception_extractor(path, layers, resize)
        except ValueError:
            continue  # if it is no Inception v3 at all, the last attempt says why
    return inception_extractor(path, choices[-1], resize)


def clip_folder(config: Config, locate: Locate, given: str) -> epath.Path:
    """Returns the CLIP folder to score with: the one given, or the pipeline's own.

    Raises ValueError where the export has none with an image encoder.
    """
    if given:
        return epath.Path(given)
    for ref in (config.encoders.clip, config.encoders.text):
        folder = locate(ref)
        if ref.kind == "clip" and folder.is_dir():
            return folder
    raise ValueError("--clip is missing: the export has no CLIP of its own, give a folder of one")

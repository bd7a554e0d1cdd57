"""PickScore (Kirstain et al. 2023): a CLIP ViT-H tuned on which of two pictures people prefer."""

import dataclasses
import math

import numpy as np
from etils import epath

from contextdiff_jax.evaluation.extraction import Extraction, FeatureExtractor
from contextdiff_jax.evaluation.extractors import CLIP_LAYER, TextEmbedder, clip_extractors
from contextdiff_jax.evaluation.feature_networks import FeatureNetwork
from contextdiff_jax.evaluation.similarity import text_alignment


@dataclasses.dataclass(frozen=True)
class ClipNetworks:
    """A CLIP on the devices: for frames, and for prompts. scale: its logit scale's exponential."""

    frames: FeatureNetwork
    texts: TextEmbedder
    scale: float


def load_clip_networks(folder: epath.PathLike, batch_size: int) -> ClipNetworks:
    """Returns the networks of a CLIP folder, PickScore's too; raises as clip_extractors does."""
    extractor, texts = clip_extractors(folder, batch_size=batch_size)
    network = FeatureNetwork(Extraction(extractor, batch_size), CLIP_LAYER)
    return ClipNetworks(network, texts, _scale(extractor))


def _scale(extractor: FeatureExtractor) -> float:
    return math.exp(float(extractor.params["logit_scale"]))


def pick_score(frame_embeddings: np.ndarray, text_embedding: np.ndarray, scale: float) -> float:
    """Returns the mean score of frames (F, D) for a prompt (D,), as LOVEU-TGVE-2023 has it.

    scale: the exponential of the network's logit scale, by which its scores are about 20.
    """
    return scale * text_alignment(frame_embeddings, text_embedding)

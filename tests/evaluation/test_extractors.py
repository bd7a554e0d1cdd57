"""Extractors record what they are; CLIP's embeddings against transformers' torch model."""

import numpy as np
import pytest

from contextdiff_jax.evaluation.extraction import Extraction, collect
from contextdiff_jax.evaluation.extractors import CLIP_LAYER, clip_extractors, inception_extractor

torch = pytest.importorskip("torch", reason="the oracle is transformers' torch model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder with a random CLIP and its tokenizer, and transformers' model and processor."""
    from tests.oracles.torch_clip import save_random_clip

    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_random_clip(folder)


def relative_error(ours, theirs):
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_embeddings_are_transformers(clip):
    folder, model, processor = clip
    captions = ["two cats asleep on a sofa", "a red circle", "", "a man riding a wave"]
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    extractor, embed_texts = clip_extractors(folder, batch_size=3)
    ours = collect(Extraction(extractor, 2)([images]))[CLIP_LAYER]
    pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
    assert relative_error(ours, model.get_image_features(pixels)) < 1e-5
    ids = processor(text=captions, return_tensors="pt", padding=True)
    theirs = model.get_text_features(ids["input_ids"], ids["attention_mask"])
    assert relative_error(embed_texts(captions), theirs) < 1e-5
    with pytest.raises(ValueError, match="0 captions"):
        embed_texts([])


def test_images_of_another_size_are_resized_as_by_the_processor(clip):
    folder, _, processor = clip
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 90, 3), dtype=np.uint8)
    extractor, _ = clip_extractors(folder)
    ours = np.asarray(extractor.protocol(images, extractor.size))
    theirs = processor(images=list(images), return_tensors="pt")["pixel_values"]
    difference = np.abs(ours - theirs.permute(0, 2, 3, 1).numpy())
    assert (difference > 1e-4).mean() < 2e-3  # sums at half a level, one level apart
    assert difference.max() < 1.01 / 255 / 0.26


def test_identities_are_recorded(clip, shared_data):
    images, _ = clip_extractors(clip[0])
    identity = images.identity(CLIP_LAYER)
    assert (identity.network, identity.protocol) == ("clip", "clip")
    assert identity.weights.startswith("sha256:")
    path = shared_data("weights/inception_v3_2015/inception_v3_to_mixed_7_fp16.safetensors")
    inception = inception_extractor(path, ("192", "768"), "clean-fid")
    assert inception.layers == ("192", "768")
    assert inception.identity("768").protocol == "clean-fid"
    assert inception.identity("768").weights != inception.identity("192").weights
    with pytest.raises(ValueError, match="protocol = 'pil'"):
        inception_extractor(path, ("768",), "pil")

"""The contrastive loss against torch, and its treatment of captions that recur."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.preprocess import clip_preprocess
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, ContrastiveTask, exchanged
from tests.fixtures.parameters import initial

CAPTIONS = ("a red circle", "a blue square", "two green birds", "nothing at all")


@pytest.fixture(scope="module")
def task(clip_folder):
    config, _ = load_clip(clip_folder)
    return ContrastiveTask(CLIP(config), load_tokenizer(clip_folder / "tokenizer"), 16)


def batch_of(task, captions):
    images = np.random.default_rng(0).integers(0, 256, (len(captions), 16, 16, 3), dtype=np.uint8)
    return {"image": images} | task.collate(captions)


def logits_of(task, params, batch):
    pixels = clip_preprocess(batch["image"].astype(np.float32) / 127.5 - 1, 16)
    apply = jax.jit(task.clip.apply)
    texts = np.concatenate([batch[name] for name in ("text_ids", "negative_ids") if name in batch])
    return np.array(apply({"params": params["clip"]}, texts, pixels))


def test_agrees_with_torch_cross_entropy(task):
    params = initial(task.init)
    batch = batch_of(task, CAPTIONS)
    loss, metrics = jax.jit(task.loss)(params, {}, batch, jax.random.key(0))
    logits = torch.from_numpy(logits_of(task, params, batch))
    labels = torch.arange(4)
    theirs = torch.nn.functional.cross_entropy
    expected = (theirs(logits, labels) + theirs(logits.T, labels)) / 2
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-5)
    right = (logits.argmax(1) == labels).float().mean()
    assert float(metrics["accuracy"]) == float(right)


def test_equal_captions_share_their_match(task):
    params = initial(task.init)
    batch = batch_of(task, (CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]))
    loss, _ = jax.jit(task.loss)(params, {}, batch, jax.random.key(0))
    logits = torch.from_numpy(logits_of(task, params, batch))
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    theirs = torch.nn.functional.cross_entropy
    expected = (theirs(logits, target) + theirs(logits.T, target)) / 2
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-5)


def test_gradients_reach_both_towers(task):
    params = initial(task.init)
    batch = batch_of(task, CAPTIONS)
    gradient = jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, jax.random.key(0))[0]))
    grads = gradient(params)["clip"]
    for tower in ("text_model", "vision_model", "logit_scale"):
        assert sum(np.sum(np.abs(leaf)) for leaf in jax.tree.leaves(grads[tower])) > 0


PHRASES = ("left of", "above", "left")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle left of a blue square", "a blue square left of a red circle"),
        ("A cat above  a dog.", "a dog above A cat."),
        ("a cat LEFT\nOF a dog!\n", "a dog LEFT OF a cat!"),
        ("a cat above .", "a cat above ."),
        ("a cat above A cat.", "a cat above A cat."),
        ("a cat, above a dog", "a cat, above a dog"),
        ("a cat above a dog. It rains.", "a cat above a dog. It rains."),
        ("a left b left of c", "b left of c left a"),
        ("a left of b above c", "b above c left of a"),
        ("a cleft of stone", "a cleft of stone"),
        ("above a dog", "above a dog"),
        ("a dog (left) of it", "a dog (left) of it"),
        ("", ""),
    ],
)
def test_what_stands_around_a_phrase_is_exchanged(caption, expected):
    assert exchanged(caption, PHRASES) == expected


def test_without_phrases_captions_stay():
    assert exchanged("a cat left of a dog", ()) == "a cat left of a dog"


RELATED = ("a red circle above a blue square", "a blue square", "a square above a circle")


@pytest.fixture(scope="module")
def related(task):
    return dataclasses.replace(task, exchange_around=("above",))


def test_exchanged_captions_are_more_texts_for_the_images(related):
    """Against torch on 3 + 2 texts: the second caption has none to add."""
    params = initial(related.init)
    batch = batch_of(related, RELATED)
    assert {name: shape.shape for name, shape in related.batch_shapes(3).items()} == {
        name: value.shape for name, value in batch.items()
    }
    loss, metrics = jax.jit(related.loss)(params, {}, batch, jax.random.key(0))
    logits = torch.from_numpy(logits_of(related, params, batch))[:, [0, 1, 2, 3, 5]]
    labels = torch.arange(3)
    theirs = torch.nn.functional.cross_entropy
    expected = (theirs(logits, labels) + theirs(logits[:, :3].T, labels)) / 2
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-5)
    assert float(metrics["accuracy"]) == float((logits.argmax(1) == labels).float().mean())


def test_an_exchanged_caption_that_is_true_of_another_image_matches_it(related):
    params = initial(related.init)
    batch = batch_of(related, ("a dog above a cat", "a cat above a dog"))
    loss, _ = jax.jit(related.loss)(params, {}, batch, jax.random.key(0))
    logits = torch.from_numpy(logits_of(related, params, batch))
    target = torch.tensor([[0.5, 0, 0, 0.5], [0, 0.5, 0.5, 0]])
    theirs = torch.nn.functional.cross_entropy
    expected = (theirs(logits, target) + theirs(logits[:, :2].T, torch.arange(2))) / 2
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-5)


@pytest.mark.parametrize("phrase", ["", " above", "left  of"])
def test_phrases_are_checked(clip_folder, phrase):
    config = ContrastiveConfig(clip=load_clip(clip_folder)[0], exchange_around=(phrase,))
    with pytest.raises(ValueError, match="task.exchange_around has .* allowed are phrases"):
        config.validate("task", DataConfig(source="scenes", resolution=16), use_adapter=False)

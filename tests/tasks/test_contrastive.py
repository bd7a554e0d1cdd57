"""The contrastive loss against torch, and its treatment of captions that recur."""

import jax
import numpy as np
import pytest
import torch

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.preprocess import clip_preprocess
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.tasks.contrastive import ContrastiveTask
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
    return np.array(apply({"params": params["clip"]}, batch["text_ids"], pixels))


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

"""The same loss, updated parameters and average on every mesh, for every task.

CONTEXTDIFF_ALL_MESHES=1 tries every mesh of 2, 4 and 8 devices; otherwise some of each size.
"""

import itertools
import os

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, shardings_of
from contextdiff_jax.tasks.contrastive import ContrastiveTask
from contextdiff_jax.training.state import TrainState, abstract_state
from contextdiff_jax.training.step import jit_train_step, make_train_step

CAPTIONS = ("a red circle", "a blue square", "two green birds", "nothing at all") * 2
SHAPES = {
    "contrastive": ((2, 1, 1), (1, 1, 2), (4, 1, 1), (2, 1, 2), (1, 8, 1), (1, 1, 8), (2, 4, 1)),
    "base": ((1, 4, 1), (2, 2, 2)),
    "sr": ((1, 2, 1), (4, 1, 2)),
}
if os.environ.get("CONTEXTDIFF_ALL_MESHES"):
    every = itertools.product((1, 2, 4, 8), repeat=3)
    SHAPES = dict.fromkeys(SHAPES, [shape for shape in every if 1 < np.prod(shape) <= 8])


@pytest.fixture(autouse=True)
def quick_compilation():
    """What is compared does not depend on how well it is optimized."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def make(make_task, clip_folder):
    def make(name):
        if name != "contrastive":
            return make_task(name)
        config, _ = load_clip(clip_folder)
        return ContrastiveTask(CLIP(config), load_tokenizer(clip_folder / "tokenizer"), 16)

    return make


@pytest.fixture(scope="module")
def updated(make):
    """Returns updated(task name, mesh shape) -> (losses, (parameters, EMA)) after two steps."""

    def run(name, shape):
        task = make(name)
        tokenize = getattr(task, "conditioning", task).tokenize
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (8, task.resolution, task.resolution, 3), dtype=np.uint8)
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
        optimizer = optax.sgd(0.02)  # unlike Adam's, its update is as exact as the gradient
        key = jax.random.key(0)
        _, shardings = abstract_state(task, optimizer, key, mesh)
        frozen_shardings = shardings_of(task.boxed_frozen(), mesh)
        step = make_train_step(task, optimizer, seed=0, ema_decay=0.9)
        step = jit_train_step(step, shardings, frozen_shardings, mesh)
        state = jax.device_put(_fresh_state(task, optimizer), shardings)
        frozen = distributed.place(task.frozen, frozen_shardings)
        batch = {"image": images} | tokenize(CAPTIONS)
        losses = []
        for _ in range(2):
            placed = jax.device_put(batch, batch_sharding(mesh))
            state, metrics = step(state, frozen, placed)
            losses.append(float(metrics["loss"]))
        return losses, jax.device_get((state.params, state.ema))

    return run


def _fresh_state(task, optimizer):
    """A state moved off its initialization, where zeros keep much of the network asleep."""
    params = _fresh_params(task)
    return TrainState(
        step=np.zeros((), np.int32),
        params=params,
        ema=jax.tree.map(np.copy, params),
        optimizer=optimizer.init(params),
        failed_at=np.full((), -1, np.int32),
    )


def _fresh_params(task):
    rng = np.random.default_rng(1)
    init = nn.unbox(jax.device_get(jax.jit(task.init)(jax.random.key(0))))
    return jax.tree.map(
        lambda leaf: leaf + (0.05 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), init
    )


@pytest.mark.parametrize("name", SHAPES)
def test_every_mesh_trains_alike(make, updated, name):
    losses, params = updated(name, (1, 1, 1))
    assert losses[0] != losses[1]
    start = _fresh_params(make(name))
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params, (start, start))
    assert max(jax.tree.leaves(moved)) > 1e-3  # a hundred times what is allowed to differ
    for shape in SHAPES[name]:
        found, found_params = updated(name, shape)
        np.testing.assert_allclose(found, losses, atol=1e-5, err_msg=f"loss on {shape}")
        for (path, leaf), other in zip(
            jax.tree.leaves_with_path(params), jax.tree.leaves(found_params), strict=True
        ):
            np.testing.assert_allclose(
                other, leaf, atol=1e-5, err_msg=f"{jax.tree_util.keystr(path)} on {shape}"
            )

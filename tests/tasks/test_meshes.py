"""The same losses, moments, updated parameters and average on every mesh, for every task.

CONTEXTDIFF_ALL_MESHES=1 tries every mesh of 2, 4 and 8 devices for every task; otherwise the
contrastive one runs on meshes that split every axis alone and beside each other, base and
super-resolution on one of each number of devices, which together split every axis.
"""

import dataclasses
import functools
import itertools
import os

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from contextdiff_jax.config import with_task
from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding, shardings_of
from contextdiff_jax.tasks.contrastive import ContrastiveTask
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.training.optimizer import OptimizerConfig, make_optimizer
from contextdiff_jax.training.state import TrainState, abstract_state
from contextdiff_jax.training.step import jit_train_step, make_train_step
from tests.fixtures.tiny_tasks import build_loaded

CAPTIONS = ("a red circle", "a blue square", "two green birds", "nothing at all") * 2
EVERY_SHAPE = [s for s in itertools.product((1, 2, 4, 8), repeat=3) if 1 < np.prod(s) <= 8]
# Its steps' weights are made of the whole batch, and its noise of pictures and conditions.
MEAN_FLOW = {
    "kind": "flow",
    "num_steps": 50,
    "objective": "mean_flow",
    "flow": FlowConfig(relation="coupling", width=16),
}
SHAPES = {
    "contrastive": [
        *((8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 1, 2)),
        *((2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 2, 4), (2, 2, 2)),
    ],
    "exchanged": [(1, 1, 8), (2, 2, 2)],
    "base": [(1, 1, 2), (1, 4, 1), (2, 2, 2)],
    "sr": [(1, 2, 1), (1, 1, 4), (4, 1, 2)],
    "scanned": [(2, 2, 2)],
    "mean_flow": [(2, 2, 2)],
}
if os.environ.get("CONTEXTDIFF_ALL_MESHES"):
    SHAPES = dict.fromkeys(SHAPES, EVERY_SHAPE)
RATE = 1e-3
MOMENTS = 1e-6  # in which Adam's moments may differ
# Gradients below may be rounding, of which Adam makes a step as long as any other; from here on
# moments that differ by MOMENTS make steps that differ by RATE * MOMENTS / SURE = 2e-5.
SURE = 5e-5


@pytest.fixture(scope="module")
def make(make_task, make_config, clip_folder):
    """Returns make(name) -> a task.

    "exchanged" is contrastive with hard negatives, "scanned" a base that scans and recomputes its
    blocks, "mean_flow" a base of kind flow.
    """

    def make(name):
        if name in ("contrastive", "exchanged"):
            clip = CLIP(load_clip(clip_folder)[0])
            tokenizer = load_tokenizer(clip_folder / "tokenizer")
            phrases = ("red", "blue") if name == "exchanged" else ()
            return ContrastiveTask(clip, tokenizer, 16, phrases)
        if name not in ("scanned", "mean_flow"):
            return make_task(name)
        config = make_config(use_adapter=False, **(MEAN_FLOW if name == "mean_flow" else {}))
        unet = dataclasses.replace(config.runs["base"].task.unet, attention_implementation="xla")
        if name == "scanned":
            levels = {"multipliers": (1,), "attention_levels": (0,), "num_blocks": 2}
            unet = dataclasses.replace(unet, scan_blocks=True, remat="blocks", **levels)
        runs = config.runs | {"base": with_task(config.runs["base"], unet=unet)}
        return build_loaded(dataclasses.replace(config, runs=runs), "base")

    return make


@pytest.fixture(scope="module")
def fresh_params(make):
    """Returns fresh_params(name): moved off their initialization, where zeros keep much asleep."""

    @functools.cache
    def of(name):
        rng, mesh = np.random.default_rng(1), make_mesh(MeshConfig(), jax.devices()[:1])
        init = jit_on_mesh(make(name).init, mesh, runs_once=True)
        return jax.tree.map(
            lambda leaf: leaf + (0.05 * rng.standard_normal(leaf.shape)).astype(leaf.dtype),
            nn.unbox(jax.device_get(init(jax.random.key(0)))),
        )

    return of


@pytest.fixture(scope="module")
def trained(make, fresh_params):
    """Returns trained(task name, mesh shape) -> (loss and gradient's norm of two steps, state)."""

    def run(name, shape):
        task = make(name)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (8, task.resolution, task.resolution, 3), dtype=np.uint8)
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])
        optimizer = make_optimizer(OptimizerConfig(learning_rate=RATE, warmup_steps=0), 2)
        _, shardings = abstract_state(task, optimizer, jax.random.key(0), mesh)
        frozen_shardings = shardings_of(task.boxed_frozen(), mesh)
        step = make_train_step(task, optimizer, seed=0, ema_decay=0.9)
        step = jit_train_step(step, shardings, frozen_shardings, mesh)
        state = jax.device_put(_state(fresh_params(name), optimizer), shardings)
        frozen = distributed.place(task.frozen, frozen_shardings)
        _check_split(frozen, mesh)
        batch = {"image": images} | task.collate(CAPTIONS)
        told = []
        for _ in range(2):
            placed = jax.device_put(batch, batch_sharding(mesh))
            state, metrics = step(state, frozen, placed)
            told.append([float(metrics[key]) for key in ("loss", "gradient_norm")])
        return told, jax.device_get(state)

    return run


def _state(params, optimizer):
    return TrainState(
        step=np.zeros((), np.int32),
        params=params,
        ema=jax.tree.map(np.copy, params),
        optimizer=optimizer.init(params),
        failed_at=np.full((), -1, np.int32),
    )


def _check_split(frozen, mesh):
    """Most of the frozen encoders is split over fsdp, each device having its part alone."""
    leaves = jax.tree.leaves(frozen)
    split = [leaf for leaf in leaves if "fsdp" in leaf.sharding.spec]
    if mesh.shape["fsdp"] > 1:
        assert sum(leaf.nbytes for leaf in split) >= sum(leaf.nbytes for leaf in leaves) / 2
    for leaf in split:
        axis = leaf.sharding.spec.index("fsdp")
        part = leaf.addressable_shards[0].data
        assert part.shape[axis] * mesh.shape["fsdp"] == leaf.shape[axis]


def _same(found, expected, tolerance, what):
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True
    ):
        message = f"{jax.tree_util.keystr(path)} of {what}"
        np.testing.assert_allclose(other, leaf, atol=tolerance, rtol=1e-4, err_msg=message)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_every_mesh_trains_alike(trained, fresh_params, name):
    told, state = trained(name, (1, 1, 1))
    assert told[0] != told[1]
    moment = functools.partial(optax.tree.get, state.optimizer)
    deviation = jax.tree.map(np.sqrt, moment("nu"))  # in the gradient's unit, unlike nu
    sure = jax.tree.map(lambda d: d > SURE * np.sqrt(1e-3), deviation)
    assert np.mean(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(sure)])) > 0.5
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), state.params, fresh_params(name))
    assert max(jax.tree.leaves(moved)) > RATE  # a hundred times what is allowed to differ
    for shape in SHAPES[name]:
        found, other = trained(name, shape)
        np.testing.assert_allclose(found, told, atol=1e-5, rtol=1e-5, err_msg=f"loss on {shape}")
        _same(optax.tree.get(other.optimizer, "mu"), moment("mu"), MOMENTS, f"mu on {shape}")
        nu = optax.tree.get(other.optimizer, "nu")
        _same(jax.tree.map(np.sqrt, nu), deviation, MOMENTS, f"nu on {shape}")
        for tree in ("params", "ema"):
            expected = getattr(state, tree)
            compared = jax.tree.map(np.where, sure, getattr(other, tree), expected)
            _same(compared, expected, RATE * MOMENTS / SURE, f"{tree} on {shape}")

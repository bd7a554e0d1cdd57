"""In-context generation: what is missing in training, and that it is what a request lacks."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from configs import in_context
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.requests import null_request
from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation.cost_of_stages import parameters
from contextdiff_jax.runs.build import LoadedEncoders, locate_in
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.in_context import ContextConfig, InContextConfig
from contextdiff_jax.tasks.task_config import Parts
from contextdiff_jax.training.parameter_names import by_name, copied

DATA = DataConfig(resolution=16, scenes=ScenesConfig(pairs=0.0, context=2))


@pytest.fixture(scope="module")
def make(make_config):
    """Returns make(use_adapter, **shares of what is missing) -> the task."""

    def make(use_adapter=True, **missing):
        shared = make_config(use_adapter, prediction="x0", drop_condition=0.0)
        base = shared.runs["base"].task
        names = ("unet", "adapter", "diffusion", "sampler")
        task = InContextConfig(
            context=ContextConfig(most=2, **missing),
            **{name: getattr(base, name) for name in names},
        )
        encoders = LoadedEncoders(shared, locate_in("unused"))
        return task.build(Parts(DATA, jnp.float32, use_adapter, encoders))

    return make


def batch_of(task, count=3):
    batches = make_batches(open_source(DATA), DATA, count, seed=0, tokenize=task.collate)
    batch = next(iter(batches))
    batches.close()
    return batch


def moved(task):
    """Parameters off their zeros; shapes alone are traced."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)


def loss_of(task):
    """Returns loss(batch), compiled once."""
    params, run = moved(task), jax.jit(task.loss)
    return lambda batch: float(run(params, task.frozen, batch, jax.random.key(3))[0])


@pytest.mark.slow
def test_what_is_missing_is_what_a_request_does_not_have(make):
    """For denoiser, branch and adapter, to the digit; and nothing is missing where no share is."""
    gone = make(no_prompt=1.0, no_context=1.0, no_query=1.0)
    batch = batch_of(gone)
    null = batch | gone.collate_requests([null_request(gone.conditions)] * 3)
    loss = loss_of(gone)
    assert loss(batch) == loss(null)
    loss = loss_of(make(no_prompt=0.0, no_context=0.0, no_query=0.0))
    whole = loss(batch)
    for name in ("present", "context", "query"):
        assert abs(loss(batch | {name: null[name]}) - whole) > 1e-6, name


def test_a_tower_that_context_and_adapter_share_is_counted_once(make):
    task = make()
    found = parameters(types.SimpleNamespace(task=task, params={}))
    assert len(found) == len(task.frozen) < len(task.encoders())


def test_shares_of_what_is_missing(make):
    task = make(use_adapter=False, no_prompt=0.5, no_context=0.2, no_query=0.1)
    count = 4000
    batch = {
        "present": np.arange(count) % 4 > 0,
        "context": np.full((count, 1, 1, 2, 4), 255, np.uint8),
        "query": np.full((count, 1, 1, 4), 255, np.uint8),
    }
    found = jax.tree.map(np.asarray, task.taken_away(batch, jax.random.key(0)))
    assert not found["present"][~batch["present"]].any()
    shown = found["context"][:, 0, 0, :, 3].astype(bool)
    assert found["present"][batch["present"]].mean() == pytest.approx(0.5, abs=0.03)
    assert (found["query"][:, 0, 0, 3] > 0).mean() == pytest.approx(0.9, abs=0.02)
    shares = [(shown.sum(axis=1) == k).mean() for k in range(3)]
    assert shares == pytest.approx([0.2, 0.4, 0.4], abs=0.03)
    assert not np.any(shown[:, 1] & ~shown[:, 0])  # the first ones are shown
    hidden = found["context"][:, 0, 0][~shown]
    assert hidden.max() == 0 and found["context"].dtype == np.uint8
    # Each by itself.
    both = np.corrcoef([shown[:, 0], found["query"][:, 0, 0, 3] > 0])[0, 1]
    assert abs(both) < 0.06


def test_requests_draw_pictures_that_depend_on_each_of_them(make, tmp_path):
    task = make(use_adapter=False)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    a, b = (str(tmp_path / f"{name}.png") for name in ("a", "b"))
    requests = [
        {"text": "a red circle", "context": [a, b], "query": a},
        {"text": None, "context": [a, b], "query": a},
        {"text": "a red circle", "context": [b, a], "query": a},  # the same sum
        {"text": "a red circle", "context": [a], "query": a},
        {"text": "a red circle", "context": [a, b], "query": b},
        {"text": "a red circle", "context": [a, b], "query": None},
    ]
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(requests), jnp.uint32))
    draw = jax.jit(task.sample, static_argnums=4)
    batch = task.collate_requests(requests)
    images = np.asarray(draw(moved(task), task.frozen, batch, keys, task.sampler))
    assert np.isfinite(images).all()
    differences = np.abs(images - images[0]).max(axis=(1, 2, 3))
    assert differences[2] < 1e-4
    assert all(differences[place] > 1e-3 for place in (1, 3, 4, 5)), differences


def preset(**changes):
    config = cfg.from_config_dict(in_context.get_config("test"))
    run = config.runs["base"]
    data = dataclasses.replace(run.data, scenes=changes.pop("scenes", run.data.scenes))
    run = cfg.with_task(dataclasses.replace(run, data=data), **changes)
    return dataclasses.replace(config, runs=config.runs | {"base": run})


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"context": ContextConfig(most=2)}, "context.most = 2: must be 3, the pictures of"),
        ({"scenes": ScenesConfig(pairs=0.0)}, "context.most = 3: must be 0, the pictures"),
        ({"context": ContextConfig(most=9)}, "context.most = 9: must be in 1..8"),
        ({"context": ContextConfig(no_query=2.0)}, r"context.no_query = 2.0: must be in \[0, 1\]"),
        ({"context": ContextConfig(floor=0.0)}, "context.floor = 0.0: must be above 0"),
        ({"hint_channels": (16, 32)}, "hint_channels = .16, 32.: must be one number"),
    ],
)
def test_what_a_config_cannot_say_is_named(changes, cause):
    with pytest.raises(ValueError, match=cause):
        validate(preset(**changes), files=False, platform=None)


def test_a_branch_may_begin_as_a_copy_of_a_trained_u_net(make, make_task):
    """Names and shapes: all of the U-Net's encoder and middle, nothing else."""
    shapes = by_name(jax.eval_shape(make(use_adapter=False).init, jax.random.key(0)))
    trained = by_name(jax.eval_shape(make_task(use_adapter=False).init, jax.random.key(0)))
    found = copied(shapes, trained, InContextConfig.copies)
    own = {name for name in shapes if name.startswith("denoiser/control/")}
    new = {name.split("/")[2].split("_")[0] for name in own - set(found)}
    assert new == {"hint", "zero"} and set(found) < own
    assert set(trained) < set(shapes)

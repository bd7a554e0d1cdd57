"""A task that the package does not know, defined here: trained, killed, resumed, drawn, measured.

It has a condition of its own (the colour that a caption names) with trainable parameters, and a
network of its own, which gets the condition as a vector.
"""

import dataclasses
import json
from importlib import metadata
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.condition import Condition, Given
from contextdiff_jax.data.config import COLOURS, DataConfig, ScenesConfig
from contextdiff_jax.evaluation import bits_per_dim, cost_of_stages, prompt_following
from contextdiff_jax.evaluation.evaluation import Settings, evaluate
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.samples import draw_samples
from contextdiff_jax.runs import build
from contextdiff_jax.runs.train import train_pipeline
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks import task_config
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, DiffusionTaskConfig
from contextdiff_jax.tasks.task_config import register, registered
from contextdiff_jax.training.checkpoints import newest_ema, newest_metadata

STEPS = 8


@dataclasses.dataclass(frozen=True)
class Colour(Condition):
    """The colour that a caption names."""

    name: ClassVar[str] = "colour"
    width: int

    def collate(self, values, warn=False):
        found = [[c in value.split() for c in COLOURS] for value in values]
        return {"colour": np.array(found, np.float32)}

    def shapes(self, batch_size):
        return {"colour": jax.ShapeDtypeStruct((batch_size, len(COLOURS)), jnp.float32)}

    def init(self, key):
        table = jax.random.normal(key, (len(COLOURS), self.width))
        return {"table": nn.LogicallyPartitioned(table, ("vocab", "context"))}

    def encode(self, params, frozen, batch):
        colour = batch["colour"]
        return Given(jnp.any(colour > 0, axis=1), inputs={"vector": colour @ params["table"]})


class Painter(nn.Module):
    """Three convolutions; the condition is added in the middle."""

    config: int
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, t, vector):
        h = nn.silu(nn.Conv(self.config, (3, 3), name="first")(x))
        time = jnp.stack([jnp.cos(t / 50), jnp.sin(t / 50)], axis=-1)
        h += nn.Dense(self.config, name="vector")(jnp.concatenate([vector, time], 1))[:, None, None]
        h = nn.silu(nn.Conv(self.config, (3, 3), name="second")(h))
        return nn.Conv(x.shape[-1], (3, 3), name="last")(h)


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class PainterConfig(DiffusionTaskConfig):
    kind: Literal["toy_painter"] = "toy_painter"
    features: int = 8

    def build(self, parts):
        return DiffusionTask(
            denoiser=Painter(self.features),
            conditions=(Colour(4),),
            **self.shared_parts(parts),
        )


def config():
    task = PainterConfig(
        diffusion=DiffusionConfig(num_steps=20, prediction="x0"),
        sampler=SamplerConfig(name="ddim", num_steps=3, threshold="static"),
        diagnose_every=4,
    )
    scenes = ScenesConfig(pairs=0.0)
    run = cfg.RunConfig(
        task=task,
        data=DataConfig(resolution=16, scenes=scenes),
        batch_size=8,
        steps=STEPS,
        log_every=2,
        save_every=2,
    )
    samples = cfg.SamplesConfig(prompts=("a red circle", "a blue square"), batch_size=8)
    made = cfg.Config(
        name="toy", runs={"base": run}, pipeline=("base",), use_adapter=False, samples=samples
    )
    # As a user's config arrives: through ml_collections, its task by the tag alone.
    return cfg.from_config_dict(cfg.to_config_dict(made))


class Dying:
    """Batches that end as a killed process does."""

    def __init__(self, batches, after):
        self.batches, self.left = batches, after

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return next(self.batches)

    def close(self):
        self.batches.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a training that was killed between two checkpoints, and resumed."""
    workdir = tmp_path_factory.mktemp("killed")
    asked = config()
    validate(asked)
    make_batches = build.make_batches
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "make_batches", lambda *a, **k: Dying(make_batches(*a, **k), 7))
        with pytest.raises(KeyboardInterrupt):
            train_pipeline(asked, workdir, draw_samples)
    assert 0 < newest_metadata(workdir / "base" / "checkpoints")["step"] < STEPS
    train_pipeline(asked, workdir, draw_samples)
    return workdir


def test_the_package_knows_it_by_its_tag_alone():
    assert registered()["toy_painter"] is PainterConfig
    assert isinstance(config().runs["base"].task, PainterConfig)


@pytest.fixture
def looked_for_again():
    """Packages are looked for once in a process."""
    task_config._import_all.cache_clear()
    yield
    task_config._import_all.cache_clear()


def test_a_package_of_somebody_elses_is_asked_for_its_tasks(looked_for_again, monkeypatch):
    asked = []
    entry = metadata.EntryPoint("toy", "tests.integration.test_toy_task", "contextdiff_jax.tasks")
    monkeypatch.setattr(metadata, "entry_points", lambda group: asked.append(group) or [entry])
    assert "toy_painter" in registered() and "toy_painter" in registered()
    assert asked == ["contextdiff_jax.tasks"]


def test_a_package_whose_tasks_cannot_be_imported_is_named(looked_for_again, monkeypatch):
    entry = metadata.EntryPoint("toy", "no_such_package.tasks", "contextdiff_jax.tasks")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    with pytest.raises(cfg.ConfigError, match="'no_such_package.tasks', cannot be imported: Mod"):
        config()


def test_a_killed_run_ends_as_an_undisturbed_one(trained, tmp_path):
    train_pipeline(config(), tmp_path, draw_samples)
    weights, undisturbed = (newest_ema(w / "base" / "checkpoints")[0] for w in (trained, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, weights, undisturbed)
    assert set(weights) == {"denoiser", "conditions"}
    for picture in (trained / "samples" / "base").glob("*.png"):
        assert picture.read_bytes() == (tmp_path / "samples" / "base" / picture.name).read_bytes()


def test_its_condition_learns_and_reaches_the_pictures(trained):
    weights, _ = newest_ema(trained / "base" / "checkpoints")
    cascade = Cascade.load(trained / "export")
    table = weights["conditions"]["colour"]["table"]
    start = cascade.stages[0].task.init(jax.random.key(0))["conditions"]["colour"]["table"].value
    assert table.shape == start.shape
    red, blue = (
        cascade.draw([{"colour": p}], seed=0)["base"] for p in ("a red circle", "a blue circle")
    )
    assert np.abs(red - blue).max() > 1e-3


def test_it_is_measured(trained, tmp_path):
    plans = {
        "scenes": prompt_following.plan_scenes,
        "bits_per_dim": bits_per_dim.plan_bits_per_dim,
        "cost": cost_of_stages.plan_cost,
    }
    settings = Settings(
        output=str(tmp_path), export=str(trained / "export"), count=8, batch_size=8, turns=1
    )
    evaluate(settings, plans)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert set(results) == set(plans)
    assert results["bits_per_dim"]["values"]["bits_per_dim"] > 0
    (cost,) = results["cost"]["tables"]
    assert cost["rows"]

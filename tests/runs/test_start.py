"""Runs that start from others' weights and train a part of them: a task of two small layers."""

import dataclasses
import shutil
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.runs import start
from contextdiff_jax.runs.export import export_pipeline, load_stage
from contextdiff_jax.runs.train import train_pipeline
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.runs.weights import whole_ema
from contextdiff_jax.tasks import task_config
from contextdiff_jax.training.checkpoints import CheckpointError, load_tree, newest_ema, save_tree
from contextdiff_jax.training.parameter_names import by_name
from tests.fixtures.tiny_tasks import build_loaded

READ = 12  # values of a picture


@dataclasses.dataclass(frozen=True)
class Squares:
    """Fits a number of each picture by two layers, with noise drawn at each step."""

    body: str
    width: int
    frozen: dict = dataclasses.field(default_factory=lambda: {"offset": np.float32([0.25])})

    def boxed_frozen(self):
        return {"offset": nn.LogicallyPartitioned(self.frozen["offset"], ("norm",))}

    def identities(self):
        return {}

    def collate(self, captions, warn=False):
        return {}

    def batch_shapes(self, batch_size):
        return {"image": jax.ShapeDtypeStruct((batch_size, 8, 8, 3), jnp.uint8)}

    def init(self, key):
        keys = jax.random.split(key, 3)
        normal = lambda key, *shape: 0.3 * jax.random.normal(key, shape)  # noqa: E731
        box = nn.LogicallyPartitioned
        return {
            self.body: {
                "w": box(normal(keys[0], READ, self.width), ("embed", "mlp")),
                "b": box(jnp.ones((self.width,)), ("mlp",)),
            },
            "head": {"out": {"w": box(normal(keys[1], self.width), ("mlp",))}},
        }

    def loss(self, params, frozen, batch, key):
        x = batch["image"].reshape(len(batch["image"]), -1)[:, :READ] / 255
        x = x + 0.1 * jax.random.normal(key, x.shape)
        hidden = jnp.tanh(x @ params[self.body]["w"] + params[self.body]["b"])
        predicted = hidden @ params["head"]["out"]["w"]
        wanted = jnp.mean(batch["image"] / 255, (1, 2, 3)) + frozen["offset"]
        return jnp.mean(jnp.square(predicted - wanted)), {}

    def diagnose(self, params, frozen, batch, key):
        return {}

    def preview(self, params, frozen, seed):
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaresConfig(task_config.TaskConfig):
    draws: ClassVar[bool] = True
    kind: Literal["squares"] = "squares"
    body: str = "body"
    wide: bool = False

    def build(self, parts):
        return Squares(self.body, 16 if self.wide else 8)


def make_run(steps=4, start_from=None, trainable=(), **task):
    # Without a warm-up (a first step of rate 0), decay or clipping, so that steps can be compared.
    optimizer = cfg.OptimizerConfig(learning_rate=0.05, warmup_steps=0, clip_norm=0.0)
    return cfg.RunConfig(
        SquaresConfig(**task),
        DataConfig(source="scenes", resolution=8, threads=1),
        batch_size=8,
        steps=steps,
        optimizer=optimizer,
        save_every=1,
        checkpoints_kept=9,
        start_from=start_from or cfg.WarmStartConfig(),
        trainable=trainable,
    )


def warming_up(run):
    optimizer = dataclasses.replace(run.optimizer, warmup_steps=1)
    return dataclasses.replace(run, optimizer=optimizer)


def pipeline_of(**runs):
    return cfg.Config(name="test", runs=runs, pipeline=tuple(runs))


def train(config, workdir, only=None):
    validate(config, only)
    train_pipeline(config, workdir, None, only)


def state_of(workdir, run, step):
    return load_tree(workdir / run / "checkpoints" / str(step) / "state")


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module", autouse=True)
def known():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(task_config._REGISTERED, "squares", SquaresConfig)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, known):
    """A workdir whose run "first" is finished, at step 4, with an export."""
    workdir = tmp_path_factory.mktemp("trained")
    config = pipeline_of(first=make_run())
    train(config, workdir)
    export_pipeline(config, workdir, workdir / "export")
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "work")
    return tmp_path / "work"


FROM_FIRST = cfg.WarmStartConfig(path="run:first")


@pytest.mark.parametrize("path", ["run:first", "first", "export/first"])
def test_the_first_step_reads_the_sources_ema(path, workdir):
    path = path if path.startswith("run:") else str(workdir / path)
    # The first step of a warm-up has rate 0: parameters and EMA are what they began with.
    second = warming_up(make_run(2, cfg.WarmStartConfig(path=path)))
    train(pipeline_of(first=make_run(), second=second), workdir)
    source = newest_ema(workdir / "first/checkpoints")[0]
    begun = state_of(workdir, "second", 1)
    assert_same(begun["params"], source)
    assert_same(begun["ema"], source)
    other = state_of(workdir, "first", 4)["params"]
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (other, source)), strict=True))


def test_what_is_fresh_begins_as_in_a_run_of_its_own(workdir):
    fresh = cfg.WarmStartConfig(path="run:first", fresh=("**/out",))
    runs = {"warm": warming_up(make_run(2, fresh)), "cold": warming_up(make_run(2))}
    train(pipeline_of(first=make_run(), **runs), workdir)
    warm, cold = (state_of(workdir, name, 1)["params"] for name in runs)
    assert_same(warm["head"], cold["head"])
    assert_same(warm["body"], newest_ema(workdir / "first/checkpoints")[0]["body"])
    assert np.any(warm["body"]["w"] != cold["body"]["w"])


def test_only_what_is_trained_changes_and_as_in_a_run_of_all(workdir):
    runs = {
        "part": make_run(3, FROM_FIRST, ("head", "b*/b")),
        "whole": make_run(3, FROM_FIRST),
    }
    train(pipeline_of(first=make_run(), **runs), workdir)
    source = newest_ema(workdir / "first/checkpoints")[0]
    part, whole = (state_of(workdir, name, 1) for name in runs)
    # AdamW's step of a parameter depends on its own gradient alone, the first one's on no other.
    for name in ("params", "ema"):
        ours, theirs = by_name(part[name]), by_name(whole[name])
        assert set(ours) == {"head/out/w", "body/b"}
        for key, leaf in ours.items():
            np.testing.assert_allclose(leaf, theirs[key], rtol=1e-6)
            assert np.all(leaf != by_name(source)[key])
    # Neither params, EMA nor moments of what is fixed.
    assert not [path for path, _ in jax.tree.leaves_with_path(part) if "'body'], ['w'" in str(path)]
    shapes = {leaf.shape for leaf in jax.tree.leaves(part)}
    assert (READ, 8) not in shapes and (READ, 8) in {x.shape for x in jax.tree.leaves(whole)}
    # What is exported is the whole network.
    last, metadata = whole_ema(workdir / "part")
    assert_same(last["body"]["w"], source["body"]["w"])
    assert metadata["start"]["fixed"] == ["body/w"]
    export_pipeline(pipeline_of(**runs), workdir, workdir / "all")
    assert_same(load_stage(workdir / "all", "part"), last)


def test_a_run_that_goes_on_ends_in_the_same_bits(workdir, tmp_path):
    def config(steps):
        return pipeline_of(first=make_run(), second=make_run(steps, FROM_FIRST, ("head",)))

    shutil.copytree(workdir, tmp_path / "undisturbed")
    train(config(6), tmp_path / "undisturbed")
    train(config(3), workdir)
    # As after a kill while a later step was written.
    shutil.rmtree(workdir / "second/checkpoints/3")
    train(config(6), workdir)
    assert_same(state_of(workdir, "second", 6), state_of(tmp_path / "undisturbed", "second", 6))


def test_what_is_trained_is_not_read_from_the_source_again(workdir):
    def config(steps):
        return pipeline_of(first=make_run(), second=make_run(steps, FROM_FIRST))

    train(config(2), workdir)
    record = whole_ema(workdir / "second")[1]["start"]
    shutil.rmtree(workdir / "first")
    train(config(4), workdir, "second")
    assert whole_ema(workdir / "second")[1]["start"] == record
    assert record["path"] == "run:first" and "fixed" not in record


@pytest.mark.parametrize("harm", ["trained on", "gone"])
def test_fixed_weights_that_changed_are_refused(harm, workdir):
    def config(steps, first=4):
        return pipeline_of(first=make_run(first), second=make_run(steps, FROM_FIRST, ("head",)))

    train(config(2), workdir)
    if harm == "gone":
        shutil.rmtree(workdir / "first")
        sentence = (
            f"'second' trains a part of the weights of {workdir}/first and reads.*restore them"
        )
    else:
        train(config(2, first=6), workdir, "first")
        sentence = r"with fixed weights \w{16} of .*first, which now holds \w{16}; restore those"
    with pytest.raises(CheckpointError, match=sentence):
        train(config(4, first=4), workdir, "second")
    # An export that was there stays.
    with pytest.raises(CheckpointError, match=sentence):
        export_pipeline(pipeline_of(second=make_run()), workdir, workdir / "export")
    assert (workdir / "export/export.json").exists()


def test_a_run_starts_from_one_that_is_fixed_in_part(workdir):
    config = pipeline_of(
        first=make_run(),
        second=make_run(2, FROM_FIRST, ("head",)),
        third=make_run(1, cfg.WarmStartConfig(path="run:second"), ("body/b",)),
    )
    train(config, workdir)
    third, second = (whole_ema(workdir / name)[0] for name in ("third", "second"))
    for key, leaf in by_name(second).items():
        assert np.array_equal(leaf, by_name(third)[key]) == (key != "body/b")


def test_neither_key_may_change_when_a_run_goes_on(workdir):
    train(pipeline_of(first=make_run(), second=make_run(2, FROM_FIRST)), workdir)
    for run in (
        make_run(4),
        make_run(4, FROM_FIRST, ("head",)),
        make_run(4, cfg.WarmStartConfig(path="run:first", fresh=("head",))),
    ):
        config = pipeline_of(first=make_run(), second=run)
        with pytest.raises(cfg.ConfigError, match=r"runs.second.(start_from.\w+|trainable): "):
            train(config, workdir, "second")


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (
            make_run(start_from=cfg.WarmStartConfig(path="run:frist")),
            r"second.start_from.path = 'run:frist': must be .* run:first; did you mean run:first\?",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="run:third")),
            r"second.start_from.path = 'run:third': must be a folder or a run before this one, ru",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="run:second")),
            r"second.start_from.path = 'run:second': must be",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(fresh=("head",))),
            r"second.start_from.fresh = \('head',\): must be empty where .*start_from.path is",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="nowhere")),
            r"second.start_from.path = 'nowhere': must be the folder of a run, WORKDIR/RUN, or of",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="{workdir}/export")),
            r"must be the folder of a run, .*; did you mean .*/export/first\?",
        ),
        (
            make_run(start_from=FROM_FIRST, trainable=("head", "body/**/ww")),
            r"second.trainable has 'body/\*\*/ww', which matches no .* body, head, or a name "
            "below; did",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="run:first", fresh=("haed",))),
            r"second.start_from.fresh has 'haed', .*; did you mean head\?",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig(path="run:first", parts=("bodi",))),
            r"second.start_from.parts has 'bodi', .*; did you mean body\?",
        ),
        (
            make_run(trainable=("head",)),
            r"second.trainable leaves body/b, body/w at random values: must be trained",
        ),
        (
            make_run(body="trunk", start_from=FROM_FIRST),
            r"'run:first', from which run 'second' starts, .* 2 missing: trunk/b, trunk/w; .*fresh",
        ),
        (
            make_run(
                start_from=cfg.WarmStartConfig(path="run:first", parts=("head", "body/b")),
            ),
            r"1 missing: body/w",
        ),
        (
            make_run(start_from=FROM_FIRST, wide=True),
            r"3 of another shape: body/b is \(8,\), must be \(16,\)",
        ),
        (
            make_run(start_from=cfg.WarmStartConfig("{workdir}/export/first"), wide=True),
            r"3 of another shape: body/b is \(8,\), must be \(16,\)",
        ),
        (
            make_run(
                body="trunk",
                start_from=cfg.WarmStartConfig("{workdir}/first", ("**",), ("trunk",)),
            ),
            r"2 unexpected: body/b, body/w; .*start_from.parts what is taken",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_run(second, sentence, workdir, monkeypatch):
    path = second.start_from.path.format(workdir=workdir)
    second = dataclasses.replace(
        second, start_from=dataclasses.replace(second.start_from, path=path)
    )
    config = pipeline_of(first=make_run(), second=second, third=make_run())
    monkeypatch.setattr("contextdiff_jax.runs.train.train_run", lambda *args: pytest.fail("began"))
    with pytest.raises(ValueError, match=sentence):
        train(config, workdir)


def test_a_source_that_is_not_finished_is_refused(workdir):
    config = pipeline_of(first=make_run(9), second=make_run(start_from=FROM_FIRST))
    sentence = r"second.start_from.path = 'run:first': run 'first' is not finished in .*; train it"
    with pytest.raises(ValueError, match=sentence):
        train(config, workdir, "second")
    for name in ("first", "export"):
        shutil.rmtree(workdir / name)
    with pytest.raises(ValueError, match=sentence):
        train(config, workdir, "second")


def test_another_tasks_run_has_no_networks_in_common(make_config, workdir):
    config = make_config()
    base = dataclasses.replace(
        config.runs["base"], start_from=cfg.WarmStartConfig(path=str(workdir / "first"))
    )
    config = dataclasses.replace(config, runs={**config.runs, "base": base})
    with pytest.raises(ValueError, match=r"first': has body, head, must have one of adapter, deno"):
        task = build_loaded(config, "base")
        start.start(config, "base", task, workdir, None)


def test_values_that_are_not_finite_are_named(workdir):
    weights = load_stage(workdir / "export", "first")
    weights["head"]["out"]["w"][3] = np.nan
    save_tree(workdir / "spoilt", weights)
    spoilt = make_run(start_from=cfg.WarmStartConfig(path=str(workdir / "spoilt")))
    with pytest.raises(ValueError, match=r"^head/out/w of '.*spoilt' holds 1 NaN or infinite"):
        start.start(pipeline_of(second=spoilt), "second", Squares("body", 8), workdir, None)


def test_an_adapter_that_does_not_learn_is_not_all_that_is_trained(make_config):
    config = make_config()
    run = config.runs["base"]
    optimizer = dataclasses.replace(run.optimizer, adapter_rate=0.0)
    warm = cfg.WarmStartConfig(path="run:first")
    run = dataclasses.replace(run, optimizer=optimizer, start_from=warm, trainable=("adapter",))
    config = dataclasses.replace(config, runs={"base": run})
    with pytest.raises(ValueError, match=r"base.optimizer.adapter_rate = 0: .* nothing else to tr"):
        start.start(config, "base", build_loaded(config, "base"), None, None)

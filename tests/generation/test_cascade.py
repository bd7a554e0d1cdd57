"""The cascade, on which devices its weights lie; whole ones are drawn from in tests/integration."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import quickstart
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.generation.cascade import Cascade, _for_this_machine
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig
from contextdiff_jax.tasks.task_config import with_networks
from contextdiff_jax.training.checkpoints import load_tree, save_tree
from tests.fixtures.tiny_tasks import build_loaded


@pytest.fixture
def export(make_config, tmp_path):
    """Returns make(mesh) -> the folder of an export of the base alone, its weights zeros."""

    def make(mesh):
        config = dataclasses.replace(make_config(), mesh=mesh)
        task = build_loaded(config, "base")
        shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
        save_tree(tmp_path / "base", jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
        stages = {"base": {"step": 1, "encoders": task.identities()}}
        content = {"format": 1, "stages": stages, "config": dataclasses.asdict(config)}
        (tmp_path / "export.json").write_text(json.dumps(content))
        return tmp_path

    return make


def respoiled(folder, change):
    """Writes the weights of the stage anew, after `change` of their nested dicts."""
    weights = load_tree(folder / "base")
    change(weights)
    save_tree(folder / "base", weights)
    return folder


def test_weights_that_are_not_finite_are_refused_with_their_name(export):
    def spoil(weights):
        leaf = next(iter(jax.tree.leaves(weights["denoiser"])))
        leaf[(0,) * leaf.ndim] = np.nan

    folder = respoiled(export(MeshConfig()), spoil)
    with pytest.raises(ValueError, match=r"^denoiser/\S+ of stage 'base' of .* holds 1 NaN or inf"):
        Cascade.load(folder)


def test_weights_of_other_networks_are_refused(export):
    def spoil(weights):
        weights["adapter"]["more"] = np.zeros(3, np.float32)
        del weights["denoiser"]["conditioning"]["text"]["null_token"]

    folder = respoiled(export(MeshConfig()), spoil)
    sentence = r"stage 'base' of .* 1 missing: denoiser/\S+/null_token; 1 unexpected: adapter/more"
    with pytest.raises(ValueError, match=sentence):
        Cascade.load(folder)


def test_weights_are_split_as_in_training_and_the_log_says_so(export, caplog):
    caplog.set_level("INFO", "absl")
    stage = Cascade.load(export(MeshConfig(-1, 4, 1))).stages[0]
    for tree in (stage.params, stage.frozen):
        assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree))
    lines = caplog.messages[-1].splitlines()
    assert [line.split()[0] for line in lines] == ["weights:", "frozen", "base"]
    assert "does not fit" not in caplog.text


def test_weights_whole_on_every_device_are_warned_of(export, caplog):
    stage = Cascade.load(export(MeshConfig(-1, 16, 1))).stages[0]
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(stage.params))
    assert "weights are whole on each of 8 devices" in caplog.text
    assert "mesh.fsdp = 16: 1, 2, 4 or 8 would fit" in caplog.text


def test_weights_that_cannot_fit_are_refused_before_they_are_placed(export, monkeypatch):
    place, placed = distributed.place, []
    monkeypatch.setattr(distributed, "place", lambda *args: placed.append(args[0]) or place(*args))
    folder = export(MeshConfig(-1, 16, 1))
    monkeypatch.setattr(jax.Device, "memory_stats", lambda self: {"bytes_limit": 2**16})
    with pytest.raises(ValueError, match=r"take devices with more memory, or a multiple of 16 dev"):
        Cascade.load(folder)
    assert [set(tree) & {"denoiser", "adapter"} for tree in placed] == [set()]  # encoders alone


def test_kernels_of_the_machine_that_trained_are_not_asked_of_another():
    config = from_config_dict(quickstart.get_config())
    runs = {
        name: dataclasses.replace(run, task=with_networks(run.task, asks_for_flash))
        for name, run in config.runs.items()
    }
    trained = dataclasses.replace(config, runs=runs)
    assert trained != config and _for_this_machine(trained) == config


def asks_for_flash(network):
    return dataclasses.replace(network, attention_implementation="flash")

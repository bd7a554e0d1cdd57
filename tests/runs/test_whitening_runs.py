"""Runs with relation whitening: what is fitted stays, through training, resuming and exporting."""

import dataclasses

import numpy as np
import pytest
from etils import epath

from configs import classes
from contextdiff_jax import config as cfg
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.runs import train
from contextdiff_jax.runs.export import load_stage
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.whitening import NAME

FLOW = DiffusionConfig(kind="flow", flow=FlowConfig(relation="whitening"), num_steps=50)


def changed(config, **changes):
    return dataclasses.replace(
        config, runs={"base": dataclasses.replace(config.runs["base"], **changes)}
    )


@pytest.fixture(scope="module")
def config():
    """classes:test with a relation that is fitted, and one level."""
    values = cfg.from_config_dict(classes.get_config("test"))
    run = values.runs["base"]
    unet = dataclasses.replace(run.task.unet, multipliers=(1,), attention_levels=(0,), head_dim=8)
    plain = {"diffusion": FLOW, "unet": unet, "preview": PreviewConfig(), "diagnose_every": 0}
    run = dataclasses.replace(cfg.with_task(run, **plain), steps=2)
    values = dataclasses.replace(values, use_adapter=False, pipeline=("base",), runs={"base": run})
    validate(values)
    return values


@pytest.fixture(scope="module")
def workdir(one_device, config, tmp_path_factory):
    """A run of two steps, exported, that went on for two more."""
    folder = epath.Path(tmp_path_factory.mktemp("whitening"))
    train.train_pipeline(config, folder, lambda *_: None)
    fitted = (folder / "base" / NAME).read_bytes()
    train.train_pipeline(changed(config, steps=4), folder, lambda *_: None)
    assert (folder / "base" / NAME).read_bytes() == fitted
    return folder


def relation_in(folder):
    """Returns the exported mean and deviation."""
    return load_stage(folder / "export", "base")["relation"]


@pytest.mark.slow
def test_what_is_fitted_is_exported_as_it_is_and_pictures_are_drawn(workdir):
    fitted = np.load(workdir / "base" / NAME)
    exported = relation_in(workdir)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(exported[name], fitted[name])
    assert fitted["std"].shape == (16, 16, 3) and fitted["std"].max() > 0.1
    [pictures] = Cascade.load(workdir / "export").draw([{"label": "a red circle"}], seed=0).values()
    assert pictures.shape == (1, 16, 16, 3) and np.isfinite(pictures).all()


@pytest.mark.slow
def test_other_data_are_refused_and_a_new_run_keeps_what_it_starts_from(workdir, config, tmp_path):
    """Or fits it anew: fresh says which."""
    data = config.runs["base"].data
    data = dataclasses.replace(
        data, scenes=dataclasses.replace(data.scenes, colours=("red", "blue"))
    )
    other = changed(config, data=data)
    with pytest.raises(ValueError, match="is of other data than config.runs.base.data"):
        train.train_pipeline(changed(other, steps=6), workdir, lambda *_: None)
    before = relation_in(workdir)
    for fresh in ((), ("relation",)):
        begun = cfg.WarmStartConfig(str(workdir / "export" / "base"), fresh=fresh)
        folder = epath.Path(tmp_path / f"new{len(fresh)}")
        train.train_pipeline(changed(other, start_from=begun), folder, lambda *_: None)
        fitted, used = np.load(folder / "base" / NAME), relation_in(folder)
        source = fitted if fresh else before
        np.testing.assert_array_equal(used["std"], source["std"])
        assert np.abs(fitted["std"] - before["std"]).max() > 1e-3

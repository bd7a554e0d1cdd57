"""Configs of earlier versions read in the form of this one, see config_upgrade."""

import dataclasses
import json

import pytest

from configs import classes
from contextdiff_jax import config as cfg
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig


def flow_config():
    """classes:test as a flow."""
    config = cfg.from_config_dict(classes.get_config("test"))
    base = cfg.with_task(config.runs["base"], diffusion=DiffusionConfig(kind="flow"))
    return dataclasses.replace(config, use_adapter=False, runs={**config.runs, "base": base})


def test_an_old_config_reads_as_the_papers_process():
    """Keys that came later stand for what was before; the schedule is the same table."""
    values = json.loads(json.dumps(cfg.to_config_dict(flow_config()).to_dict()))
    diffusion = values["runs"]["base"]["task"]["diffusion"]
    for key in ("kind", "flow"):
        del diffusion[key]
    read = cfg.from_config_dict(values).runs["base"].task.diffusion
    assert read.kind == "vp" and read.schedule_at(16).name == "cosine"


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_times_that_a_config_has_in_the_section_of_flow_are_read(kind):
    """As configs had them before kind vp could choose its times, too."""
    config = flow_config() if kind == "flow" else cfg.from_config_dict(classes.get_config("test"))
    values = json.loads(json.dumps(cfg.to_config_dict(config).to_dict()))
    diffusion = values["runs"]["base"]["task"]["diffusion"]
    flow = diffusion["flow"]
    for key in ("times", "time_mean", "time_std"):
        flow[key] = diffusion.pop(key)
    assert cfg.from_config_dict(values) == config
    flow["times"], flow["time_mean"] = "logit_normal", 0.4
    read = cfg.from_config_dict(values).runs["base"].task.diffusion
    assert (read.times, read.time_mean, read.time_std) == ("logit_normal", 0.4, 1.0)
    diffusion["times"] = "uniform"
    with pytest.raises(cfg.ConfigError, match="diffusion.flow.times = 'logit_normal': unknown key"):
        cfg.from_config_dict(values)

"""Exports of stages that were trained by calls of their own."""

import pytest

from configs import quickstart
from contextdiff_jax.pipeline.export import _described
from contextdiff_jax.training.checkpoints import CheckpointError


def metadata(step):
    config = quickstart.get_config().to_dict()
    return {"step": step, "encoders": {"text": "x"}, "config": config, "versions": {"of": step}}


def test_every_stage_is_described_as_it_was_trained():
    found = {"base": metadata(1), "sr": metadata(2)}
    found["base"]["config"]["runs"]["base"]["diffusion"]["prediction"] = "v"
    found["sr"]["config"]["runs"]["sr"]["sampler"]["num_steps"] = 7
    described = _described(found)
    assert described["config"]["runs"]["base"]["diffusion"]["prediction"] == "v"
    assert described["config"]["runs"]["sr"]["sampler"]["num_steps"] == 7
    assert described["stages"]["base"] == {"step": 1, "encoders": {"text": "x"}}
    assert described["versions"] == {"of": 2}


def test_stages_that_do_not_go_together_are_refused():
    found = {"base": metadata(1), "sr": metadata(2)}
    found["sr"]["config"]["encoders"]["clip"]["path"] = "moved/elsewhere"
    _described(found)
    found["sr"]["config"]["use_adapter"] = False
    with pytest.raises(CheckpointError, match="'base' .there. and 'sr' .here. .*use_adapter: True"):
        _described(found)

"""Model cards: what they say of the base's licence, and whose they are."""

import dataclasses

import pytest
from etils import epath

from configs import classes
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.model_card import Trained, card, write_card


@pytest.fixture
def trained(tmp_path):
    from configs import quickstart

    config = from_config_dict(quickstart.get_config("test"))
    config = dataclasses.replace(config, model=str(tmp_path))
    metadata = {"step": 4, "encoders": {"text": "sha256:x"}, "data": {"samples": 9}}
    (tmp_path / "base").mkdir()
    rows = "step,name,value\n2,loss,0.9\n4,loss,0.25\n"
    (tmp_path / "base/metrics.csv").write_text(rows)
    return Trained(config, {"base": metadata}, epath.Path(tmp_path))


def test_the_base_s_licence_holds_for_what_is_made_of_it(trained, tmp_path):
    assert "states no licence" in card(trained, "diffusers")
    (tmp_path / "README.md").write_text("---\nlicense: openrail\n---\nlicense: other\n")
    text = card(trained, "diffusers")
    assert "\nlicense: openrail\n" in text and "under `openrail`" in text and "other" not in text


def test_the_last_logged_metrics_are_shown(trained):
    text = card(trained, "contextdiff")
    assert "| base: loss | 0.25 |" in text and "0.9" not in text
    assert "| step | 4 of 4, 8 pictures each |" in text and "| samples | 9 |" in text


def test_a_flow_has_no_schedule(trained):
    assert "| process | cosine, " in card(trained, "contextdiff")
    values = classes.get_config("scenes_mean_flow")
    config = dataclasses.replace(from_config_dict(values), model=trained.config.model)
    text = card(dataclasses.replace(trained, config=config), "contextdiff")
    assert "| process | flow matching of mean velocities, relation none, 1000 steps, v |" in text


def test_an_untrained_stage_has_no_metrics_of_another_run_there(trained):
    begun = {"base": {**trained.stages["base"], "step": 0}}
    text = card(dataclasses.replace(trained, stages=begun), "contextdiff")
    assert "| step | 0 of 4" in text and "None was logged." in text and "0.25" not in text


def test_a_card_is_replaced_until_somebody_makes_it_theirs(trained, tmp_path, caplog):
    output = epath.Path(tmp_path / "export")
    output.mkdir()
    for _ in range(2):
        write_card(output, trained, "contextdiff")
    assert "kept" not in caplog.text
    (output / "README.md").write_text("my own words")
    write_card(output, trained, "contextdiff")
    assert (output / "README.md").read_text() == "my own words"
    assert "is kept as it is" in caplog.text

"""Which changes of a config a run that goes on takes, and that it remembers them."""

import copy
import json
import pathlib
import re

import pytest

from contextdiff_jax.config import ConfigError
from contextdiff_jax.runs.resumption import (
    check_finished_run,
    check_same_run,
    warn_of_new_length,
)
from tests.fixtures.presets import load_preset, preset_of_format_1


def load(name, preset=""):
    return load_preset(name, preset).to_dict()


@pytest.fixture
def saved():
    """The metadata of a checkpoint of the quickstart."""
    return {
        "step": 700,
        "config": load("quickstart", "adapter"),
        "encoders": {"text": "sha256:1"},
        "data": {"samples": 5},
        "history": [],
    }


def changed(saved, **values):
    """A copy whose run `base` has other values, keys with __ for the dots."""
    current = copy.deepcopy(saved)
    for key, value in values.items():
        *path, last = key.split("__")
        section = current["config"]["runs"]["base"]
        for part in path:
            section = section[part]
        section[last] = value
    return current


def test_other_keys_are_named_and_refused(saved):
    current = changed(saved, steps=9, optimizer__learning_rate=0.5)
    current["data"] = {"samples": 6}
    current["encoders"]["text"] = "sha256:2"
    with pytest.raises(ConfigError) as error:
        check_same_run(saved, current, "base")
    assert "encoders.text: 'sha256:1' there, 'sha256:2' here" in str(error.value)
    assert "config.data.samples: 5 there, 6 here" in str(error.value)
    assert re.search(r"optimizer.learning_rate: 0.004 there, 0.5 here", str(error.value))
    assert "steps" not in str(error.value)


def test_a_checkpoint_without_a_newer_key_has_what_it_stands_for(saved):
    current = copy.deepcopy(saved)
    del saved["config"]["runs"]["base"]["optimizer"]["adapter_rate"]
    assert check_same_run(saved, current, "base") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 9),
        ("log_every", 9),
        ("data__threads", 3),
        ("data__processes", 3),
        ("task__unet__attention_implementation", "xla"),
        ("task__adapter__attention_implementation", "xla"),
        ("task__unet__remat", "blocks"),
        ("task__unet__remat_levels", 1),
    ],
)
def test_what_leaves_the_numbers_may_change_at_any_time(key, value, saved, caplog):
    current = changed(saved, **{key: value})
    (entry,) = check_same_run(saved, current, "base")
    assert entry["key"] == "config.runs.base." + key.replace("__", ".")
    assert (entry["step"], entry["to"]) == (700, value)
    check_finished_run(saved, current["config"], "base")
    assert not caplog.messages  # warnings


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("optimizer__learning_rate", 1e-3, 1e-2),
        ("optimizer__warmup_steps", 500, 5),
        ("optimizer__clip_norm", 0.1, 10.0),
        ("optimizer__clip_norm", 0.1, 0.0),
        ("optimizer__accumulation", 4, None),
        ("batch_size", 8, None),
        ("batch_size", 32, None),
    ],
)
def test_what_a_message_advises_is_taken_said_and_remembered(key, value, refused, saved, caplog):
    current = changed(saved, **{key: value})
    (entry,) = check_same_run(saved, current, "base")
    path = "config.runs.base." + key.replace("__", ".")
    before = saved["config"]["runs"]["base"]
    for part in key.split("__"):
        before = before[part]
    assert entry == {"step": 700, "key": path, "from": before, "to": value}
    assert f"from step 700 on {path} = {value}, before {before}" in caplog.text
    # A finished run of other numbers is not taken for this one.
    with pytest.raises(ConfigError, match=path):
        check_finished_run(saved, current["config"], "base")
    if refused is not None:
        with pytest.raises(ConfigError, match=path):
            check_same_run(saved, changed(saved, **{key: refused}), "base")


def test_another_mesh_is_remembered(saved):
    current = copy.deepcopy(saved)
    current["config"]["mesh"]["fsdp"] = 8
    assert [entry["key"] for entry in check_same_run(saved, current, "base")] == [
        "config.mesh.fsdp"
    ]


def test_an_adafactor_that_decayed_otherwise_is_refused(saved):
    optimizer = saved["config"]["runs"]["base"]["optimizer"]
    optimizer |= {"name": "adafactor", "weight_decay": 0.01}
    assert check_same_run(saved, saved, "base") == []
    del saved["history"]
    with pytest.raises(ConfigError, match="did not scale weight_decay = 0.01 by the learning rate"):
        check_same_run(saved, saved, "base")


def test_another_length_is_said_where_the_learning_rate_follows_it(saved, caplog):
    steps, longer = saved["config"]["runs"]["base"]["steps"], changed(saved, steps=9000)
    caplog.set_level("WARNING")
    warn_of_new_length(saved, saved, "base")
    assert not caplog.messages
    warn_of_new_length(saved, longer, "base")
    assert f"steps = {steps} and goes on with 9000: the learning rate" in caplog.text


def test_a_finished_run_of_another_config_is_not_taken_for_this_one(saved):
    current = load("quickstart", "adapter")
    current["use_adapter"] = False
    check_finished_run(saved, current, "clip")  # which has none either way
    with pytest.raises(ConfigError, match="'base' was .*config.use_adapter: True there"):
        check_finished_run(saved, current, "base")


def test_a_checkpoint_of_the_old_form_goes_on(saved):
    """Its config had the sections of every task beside the task's name."""
    current = {**saved, "config": preset_of_format_1().to_dict()}
    old = json.loads((pathlib.Path(__file__).parent / "format_1.json").read_text())["config"]
    assert old["runs"]["base"]["task"] == "text_to_image"
    for name in old["pipeline"]:
        assert check_same_run({**saved, "config": old}, current, name) == []
    old["runs"]["base"]["unet"]["width"] = 48
    with pytest.raises(ConfigError, match="runs.base.task.unet.width: 48 there, 24 here"):
        check_same_run({**saved, "config": old}, current, "base")

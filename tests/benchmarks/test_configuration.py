"""Keys of a config on a benchmark's command line: changed as for main, or refused."""

import argparse
import dataclasses

import pytest

from benchmarks.configuration import load_config, parse_with_changes
from contextdiff_jax.config import differences


def changes(*words):
    return parse_with_changes(argparse.ArgumentParser(), words)[1]


def test_keys_of_the_config_are_changed_as_on_the_command_line_of_main():
    words = ("--config.runs.base.task.diffusion.num_steps=50", "--config.name=a b")
    config = load_config("classes:scenes", changes(*words, "--noconfig.use_adapter"))
    lines = differences(
        dataclasses.asdict(config), dataclasses.asdict(load_config("classes:scenes"))
    )
    assert lines == [
        "config.name: 'classes_scenes' there, 'a b' here",
        "config.runs.base.task.diffusion.num_steps: 1000 there, 50 here",
        "config.use_adapter: True there, False here",
    ]
    assert changes() == []


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--config.sed=1", "--config.sed=1: config has no key 'sed', it has .* seed"),
        ("--config.seed=x", "--config.seed=x: invalid literal for int.*'x'"),
        ("--config.runs.bse.steps=1", "--config.runs.bse.steps=1: config.runs has no key 'bse'"),
        ("--config.runs=3", "--config.runs=3: config.runs is a section; set one of its keys"),
    ],
)
def test_a_wrong_key_or_value_of_the_config_is_one_sentence(word, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}") as caught:
        load_config("classes:scenes", [word])
    assert "\n" not in str(caught.value) and "\\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["--sead=1", "more"])
def test_other_words_of_the_command_line_are_refused(word, capsys):
    with pytest.raises(SystemExit):
        changes(word)
    assert f"unrecognized argument {word}: keys are --config.KEY=VALUE" in capsys.readouterr().err

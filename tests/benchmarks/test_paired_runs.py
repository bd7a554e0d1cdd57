"""Variants differ in the adapter alone, results are kept, the summary is their statistics."""

import dataclasses
import json
import subprocess
import sys

import pytest

from benchmarks import paired_runs
from benchmarks.configuration import load_config
from contextdiff_jax.config import differences
from tests.conftest import ROOT


def test_variants_differ_in_the_adapter_alone():
    config, _, base = paired_runs.base_only(load_config("quickstart"), 3, 40)
    assert config.seed == 3 and config.runs[base].steps == 40
    plain = dataclasses.asdict(config)
    found = {
        name: differences(dataclasses.asdict(change(config, base)), plain)
        for name, change in paired_runs.VARIANTS.items()
    }
    assert found == {
        "none": ["config.use_adapter: True there, False here"],
        "bounded": [],
        "bound_0.3": ["config.runs.base.adapter.bound: 1.0 there, 0.3 here"],
        "unbounded": ["config.runs.base.adapter.bound: 1.0 there, None here"],
    }


def test_summary_is_mean_deviation_and_pairs():
    results = {
        "none": {"0": {"colour_and_shape": 0.5}, "1": {"colour_and_shape": 0.7}},
        "bounded": {"0": {"colour_and_shape": 0.6}, "1": {"colour_and_shape": 0.6}},
    }
    rows = paired_runs.summary(results).splitlines()
    assert rows[2].startswith("| none | 0.6 +- 0.141 |")
    assert rows[3].startswith("| bounded | 0.6 +- 0 |")
    assert rows[3].endswith("| +0.100, -0.100 |")


def test_command(tmp_path):
    flags = [f"--output={tmp_path}", "--config=quickstart:test", "--variants=unbounded"]
    flags += ["--seeds=0", "--count=4", "--steps=2"]
    # A child of its own sees one device, and compiles for one.
    command = [sys.executable, "-m", "benchmarks.paired_runs", *flags]
    subprocess.run(command, check=True, cwd=ROOT)
    path = tmp_path / "0/unbounded/result.json"
    kept = json.loads(path.read_text())
    assert {"colour_and_shape", "loss", "relation_rms"} <= set(kept["measures"])
    assert (tmp_path / "0/unbounded/pictures/grid.png").exists()
    kept["measures"]["loss"] = 42.0
    path.write_text(json.dumps(kept))
    assert paired_runs.main(flags)["unbounded"]["0"]["loss"] == 42.0
    with pytest.raises(ValueError, match="other steps or prompts"):
        paired_runs.main([*flags, "--count=5"])


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--variants=none,best", "variants = 'best': must be of none, bounded"),
        ("--seeds=1,x", "seeds = 'x': must be whole numbers"),
        ("--config=emoji:cpu", "trains on 'shards': only scenes"),
    ],
)
def test_bad_arguments_are_named(tmp_path, flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        paired_runs.main([f"--output={tmp_path}", flag])

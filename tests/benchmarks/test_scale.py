"""The document of compiler figures, from reports as compile.py writes them."""

import contextlib
import dataclasses
import json
import pathlib
import subprocess

import pytest

from benchmarks import scale
from contextdiff_jax.compilation.report import Report
from contextdiff_jax.parallel.topologies import CHIPS

REPORT = Report(
    config="laion",
    run="base",
    what="train",
    topology="v5e:16x16",
    chips=256,
    mesh={"data": 32, "fsdp": 8, "tensor": 1},
    batch_size=2048,
    parameters=2_000_000_000,
    model_flops=8e15,
    argument_bytes=2**32,
    temporary_bytes=2**31,
    code_bytes=0,
    peak_bytes=3 * 2**31,
    hbm_bytes=CHIPS["v5e"].hbm,
    fits=True,
    compiled_flops=4e13,
    flops_ratio=1.28,
    traffic_bytes=1e11,
    collectives={"all-gather": (300, 2.5e9)},
    custom_calls={},
    uncounted_loops=0,
    compute_s=0.203,
    memory_s=0.122,
    network_s=0.0125,
    step_s=0.203,
    mfu_bound=0.781,
    lower_s=5.0,
    compile_s=400.0,
    effort=-1.0,
    versions={"jax": "0.10.2"},
)


def test_what_is_there_is_shown_and_what_lacks_is_said(tmp_path):
    output = tmp_path / "scale.md"
    scale.write(tmp_path, scale.TEMPLATE, output)
    assert "No case is compiled yet" in output.read_text()
    (tmp_path / "base-v5e-256.json").write_text(json.dumps(REPORT.to_json()))
    scale.write(tmp_path, scale.TEMPLATE, output)
    text = output.read_text()
    row = "| base, v5e-256 | v5e:16x16 | 32 x 8 x 1 | 2,048 | 6.00 (16) | 1.28 | 0.203 |"
    assert row in text
    assert "| 14,436 | 400 |" in text  # 1e6 steps x 0.203 s x 256 chips / 3600 s
    assert "| base, v5e-256 | 300, 2.50 GB |" in text
    assert "Missing: sr-v5e-256" in text
    assert "{" not in text


def test_aims_are_met_or_missed():
    slow = dataclasses.replace(REPORT, run="sr", flops_ratio=1.5, mfu_bound=0.32)
    elsewhere = dataclasses.replace(REPORT, topology="v5p:2x4x4", chips=32)
    table = scale.aims([report.to_json() for report in (REPORT, slow, elsewhere)])
    assert "| aim | base | sr |" in table
    assert "| at most 14 GiB per chip | met: 6.00 GiB | met: 6.00 GiB |" in table
    assert "| met: 1.28 | **missed**: 1.50 |" in table
    assert "| met: 78% | **missed**: 32% |" in table
    assert "| met: none sent | met: none sent |" in table
    assert scale.slice_name(elsewhere.to_json()) == "v5p-64"


def test_every_case_is_a_command_that_compile_knows():
    assert len({case.name for case in scale.CASES}) == len(scale.CASES)
    assert "--run=sr --topology=v6e:8x8 --batch_size=1024" in scale.commands()


FIGURES = {"fits": False, "peak_bytes": 1}


@pytest.mark.parametrize(
    ("code", "written", "error"),
    [
        (0, FIGURES | {"fits": True}, None),
        (1, FIGURES, None),  # it does not fit: a result
        (1, {"fits": False, "compiler": "RESOURCE_EXHAUSTED: all"}, "case: RESOURCE_EXHAUSTED"),
        (1, None, "case: compile ended with exit code 1"),
        (70, FIGURES, "case: compile ended with exit code 70"),
    ],
)
def test_figures_are_kept_and_nothing_else(code, written, error, tmp_path, monkeypatch):
    def run(command, **_):
        if written:
            path = next(flag for flag in command if flag.startswith("--output="))
            pathlib.Path(path.partition("=")[2]).write_text(json.dumps(written))
        return subprocess.CompletedProcess(command, code)

    before = tmp_path / "case.json"
    before.write_text('"before"')
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match=error) if error else contextlib.nullcontext():
        scale.compile_case(scale.Case("case", ()), tmp_path)
    assert list(tmp_path.iterdir()) == [before]
    assert json.loads(before.read_text()) == ("before" if error else written)

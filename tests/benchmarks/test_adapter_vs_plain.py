"""Both trainings at toy size: time ends the first, the second does as many steps."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import adapter_vs_plain
from contextdiff_jax.system.interruption import Watch

ROOT = pathlib.Path(__file__).parent.parent.parent


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGTERM)]


def test_time_counts_from_the_beginning_of_the_training():
    before, begun = handlers(), []
    with adapter_vs_plain.stopped_after(0.005, lambda: bool(begun)), Watch() as watch:
        time.sleep(0.6)
        assert not watch.triggered
        begun.append(True)
        deadline = time.monotonic() + 5
        while not watch.triggered and time.monotonic() < deadline:
            time.sleep(0.01)
    assert watch.triggered
    assert handlers() == before


@pytest.mark.slow
def test_command(tmp_path):
    # CLIP as the pipeline of other tests trains it: that program is compiled already.
    flags = ["--config=quickstart:test", "--minutes=0.005", "--clip_steps=4", "--batch_size=8"]
    # A child of its own sees one device, and compiles for one.
    command = [sys.executable, "-m", "benchmarks.adapter_vs_plain", *flags]
    subprocess.run([*command, f"--output={tmp_path}"], check=True, cwd=ROOT)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["with"]["step"] == summary["without"]["step"] >= 1
    assert "relation_rms" in summary["with"]["last"]
    assert "relation_rms" not in summary["without"]["last"]
    for side in ("with", "without"):
        for name in ("metrics.csv", "overview.txt", "pictures/base/grid.png"):
            assert (tmp_path / side / name).exists()


def test_a_path_without_data_is_refused_before_anything_trains(tmp_path):
    flags = [f"--data_path={tmp_path}/nothing", f"--output={tmp_path}"]
    with pytest.raises((ValueError, FileNotFoundError), match="nothing"):
        adapter_vs_plain.main(flags)

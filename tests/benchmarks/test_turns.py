"""The order of turns, the arithmetic of rates, and the limit on cores."""

import subprocess
import sys

import pytest

from benchmarks import turns


def test_sides_alternate_and_rates_are_images_per_second(monkeypatch):
    calls = []
    clock = iter(range(10_000))
    monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))  # a call takes 1 s
    monkeypatch.setattr(turns.time, "sleep", lambda seconds: None)
    sides = [turns.Side(name, lambda name=name: calls.append(name), 8) for name in "ab"]
    rates = turns.take_turns(sides, 3, 2.0)
    assert rates == {"a": [8.0] * 3, "b": [8.0] * 3}
    assert "".join(calls) == "aabb" + "aabb" * 3  # warm-up and its timing, then turns of 2 s


def test_ratios(capsys):
    result = turns.compare({"a": [2.0, 3.0, 8.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    assert result == {
        "a_median": 3.0,
        "b_median": 2.0,
        "ratio_of_medians": 1.5,
        "pair_ratio_min": 1.5,
        "pair_ratio_median": 2.0,
        "pair_ratio_max": 4.0,
    }
    assert "1.500" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(turns.os, "sched_setaffinity"), reason="no core affinity here")
def test_cores_are_restricted_for_the_whole_process():
    code = (
        "from benchmarks import turns\n"
        "turns.use_cores(1)\n"
        "assert turns.cores() == 1\n"
        "turns.use_cores(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "threads = 2: must be 1 to 1, the cores available" in done.stderr

"""The comparison with torch-fidelity at toy size: equal features, the flags, the result."""

import json
import os

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

from benchmarks import feature_extraction  # noqa: E402


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core affinity here")
def test_command(tmp_path, capsys, same_threads_afterwards):
    path = tmp_path / "result.json"
    sizes = ["--resolution=32", "--batch_size=1", "--batches=2", "--turns=1", "--seconds=0"]
    flags = ["--features=64,192", "--threads=1", f"--json={path}"]
    feature_extraction.main(sizes + flags)
    result = json.loads(path.read_text())
    assert result["error"] < 1e-5
    assert all(rate > 0 for side in result["rates"].values() for rate in side)
    assert result["ratio_of_medians"] == result["ours_median"] / result["torch-fidelity_median"]
    assert "features 64, 192" in capsys.readouterr().out


def test_features_that_differ_end_the_comparison():
    ones = {"64": np.ones((2, 3))}
    with pytest.raises(ValueError, match="features differ by 1.0e-03, more than 0.0001"):
        feature_extraction.largest_error({"64": np.full((2, 3), 1.001)}, ones)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--features=1024", "features = 1024: must be some of 64, 192"),
        ("--batches=0", "batches = 0: must be at least 1"),
    ],
)
def test_bad_flags_end_in_one_sentence(flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        feature_extraction.main([flag])

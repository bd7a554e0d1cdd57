"""Every metric agrees with its packages; what real weights allow, on real pictures."""

import json

import numpy as np
import pytest

pytest.importorskip("torch_fidelity", reason="the oracles are torch-fidelity and others")

from benchmarks import metric_agreement  # noqa: E402
from benchmarks.metric_agreement import TOLERANCE, agreement  # noqa: E402

EXPECTED = {
    "frechet": {"torch-fidelity", "torchmetrics", "clean-fid", "scipy.linalg.sqrtm"},
    "inception_scores": {"torch-fidelity", "torchmetrics"},
    "precision_recalls": {"torch-fidelity", "prdc"},
    "resizing": {"torch-fidelity", "clean-fid", "torch (as pytorch-fid)"},
    "inception": {"torch-fidelity"},
    "clip_scores": {"torchmetrics"},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("comparison", metric_agreement.COMPARISONS, ids=lambda c: c.__name__)
def test_metrics_agree_with_their_packages(comparison):
    rows = list(comparison())
    assert {row.oracle for row in rows} == EXPECTED[comparison.__name__]
    assert {row.metric: row.error for row in rows if not row.error <= TOLERANCE} == {}


@pytest.mark.slow
def test_fid_768_of_photos_agrees(shared_data):
    weights = shared_data("weights/inception_v3_2015/inception_v3_to_mixed_7_fp16.safetensors")
    files = metric_agreement.pictures(shared_data("photos"), 4)
    rows = list(metric_agreement.real_pictures(weights, files))
    assert [row.metric for row in rows if row.error <= TOLERANCE] == [
        "Inception features 768, photos",
        "FID-768 of photos",
    ]


def test_the_command_prints_a_table(tmp_path, capsys, monkeypatch):
    def rows():
        yield agreement("one", "another", [1.0, 2.0], [1.0, 2.5])

    monkeypatch.setattr(metric_agreement, "COMPARISONS", (rows,))
    path = tmp_path / "table.json"
    metric_agreement.main([f"--json={path}"])
    assert json.loads(path.read_text()) == [{"metric": "one", "oracle": "another", "error": 0.2}]
    assert "largest: 2.0e-01 (one, another)" in capsys.readouterr().out


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(SystemExit):
        metric_agreement.main(["--weights=x"])
    with pytest.raises(ValueError, match="0 pictures, must be at least 4"):
        metric_agreement.pictures(tmp_path, 8)
    with pytest.raises(ValueError, match=r"our shape \(2,\) is not x's \(3,\)"):
        agreement("m", "x", np.zeros(2), np.zeros(3))

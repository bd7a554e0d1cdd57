"""What counts as the same: every value but the clock's, every array, every picture."""

import numpy as np
import pytest

from benchmarks import same_bits


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A finished pipeline of one run, as far as it is compared."""
    state = {"params": {"w": np.arange(3.0)}, "ema": {"w": np.arange(3.0)}}
    monkeypatch.setattr(same_bits, "load_tree", lambda path: state)
    monkeypatch.setattr(same_bits, "newest_metadata", lambda path: {"step": 4})
    (tmp_path / "base").mkdir()
    rows = "step,name,value\n4,loss,0.25\n4,images_per_second,9.0\n"
    (tmp_path / "base" / "metrics.csv").write_text(rows)
    (tmp_path / "samples" / "base").mkdir(parents=True)
    (tmp_path / "samples" / "base" / "0000.png").write_bytes(b"picture")
    return tmp_path, state


def test_every_kind_of_difference_is_found(workdir):
    folder, state = workdir
    before = same_bits.fingerprint(folder)
    assert len(before) == 4 and before["base loss at 4"] == "0.25"
    rows = "step,name,value\n4,loss,0.2500001\n4,images_per_second,7.0\n"
    (folder / "base" / "metrics.csv").write_text(rows)
    state["ema"]["w"] = np.nextafter(state["ema"]["w"], 9)
    (folder / "samples" / "base" / "0000.png").write_bytes(b"Picture")
    (folder / "samples" / "base" / "0001.png").write_bytes(b"one more")
    assert same_bits.compare(before, same_bits.fingerprint(folder)) == [
        "base loss at 4",
        "base state['ema']['w']",
        "samples/base/0000.png",
        "samples/base/0001.png",
    ]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        same_bits.main([f"--other={tmp_path}", f"--output={tmp_path}"])
    assert "no checkout of the project there" in capsys.readouterr().err

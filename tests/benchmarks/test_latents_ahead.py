"""Stored latents beside encoding, at toy size."""

import json

import pytest

from benchmarks import latents_ahead


@pytest.mark.slow
def test_command(tmp_path, capsys):
    path = tmp_path / "result.json"
    flags = ["--batch_size=1", "--without_adapter", "--turns=1", "--seconds=0", f"--json={path}"]
    latents_ahead.main(flags)
    result = json.loads(path.read_text())
    rates = {side: result["rates"][side][0] for side in ("stored", "encoded")}
    assert result["ratio_of_medians"] == pytest.approx(rates["stored"] / rates["encoded"])
    assert "stored / encoded" in capsys.readouterr().out


def test_runs_of_pixels_are_refused():
    with pytest.raises(ValueError, match=r"run = 'base': must be one in latents, \(none\)"):
        latents_ahead.main(["--config=quickstart"])
    with pytest.raises(ValueError, match="run = 'clip': must be one in latents, base"):
        latents_ahead.main(["--run=clip"])

"""Stored latents beside encoding, at toy size."""

import dataclasses
import json

import pytest

from benchmarks import latents_ahead
from benchmarks.configuration import load_config
from contextdiff_jax.config import with_task


def of_one_level(name):
    """The config with a U-Net that is compiled soon; the first stage as it is."""
    config = load_config(name)
    sizes = {"channels": (16,), "attention_levels": (), "heads": (1,)}
    unet = dataclasses.replace(config.runs["base"].task.latent_unet, **sizes)
    base = with_task(config.runs["base"], latent_unet=unet)
    return dataclasses.replace(config, runs={**config.runs, "base": base})


@pytest.mark.slow
def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latents_ahead, "load_config", of_one_level)
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

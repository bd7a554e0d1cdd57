"""What a cascade draws by where a call does not say: the export's samples."""

import dataclasses

import jax
import numpy as np
import pytest

from contextdiff_jax.config import SamplesConfig
from contextdiff_jax.evaluation.evaluation import Evaluation, Settings
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh

PROMPT = {"text": "a"}
OWN = SamplesConfig(seed=5, batch_size=3, augmentation=0.1)


@pytest.fixture
def cascade(make_task, monkeypatch):
    """A base and a super-resolution that was trained with levels up to 0.25; it draws nothing."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    text, low = make_task("sr").conditions
    low = dataclasses.replace(low, augmentation=0.25)
    sr = dataclasses.replace(make_task("sr"), conditions=(text, low))
    tasks = {"base": make_task("base"), "sr": sr}
    stages = [Stage(name, task, None, None, None, mesh) for name, task in tasks.items()]
    asked = []

    def draw(self, requests, places, batch_size, seed, augmentation):
        asked.append((seed, batch_size, augmentation))
        picture = np.zeros((len(places), 4, 4, 3), np.float32)
        return {stage.name: picture for stage in self.stages}

    monkeypatch.setattr(Cascade, "_draw_batch", draw)
    found = Cascade(stages, mesh, OWN)
    found.asked = asked
    return found


def test_what_is_left_out_is_the_exports(cascade):
    assert len(cascade.draw([PROMPT] * 4)["sr"]) == 4
    assert cascade.asked == [(5, 3, 0.1)] * 2
    cascade.asked.clear()
    cascade.draw([PROMPT], seed=0, batch_size=1, augmentation=0.0)
    assert cascade.asked == [(0, 1, 0.0)]
    assert cascade.until("base").samples == OWN


def test_levels_beyond_the_trained_are_warned_of(cascade, caplog):
    cascade.draw([PROMPT], augmentation=0.25)
    assert "trained with levels" not in caplog.text
    cascade.draw([PROMPT], augmentation=0.5)
    assert "augmentation = 0.5: stage 'sr' was trained with levels up to 0.25" in caplog.text


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"augmentation": 1.5}, "augmentation = 1.5: must lie in"),
        ({"augmentation": float("nan")}, "augmentation = nan: must lie in"),
        ({"seed": -1}, "seed = -1: must be a seed in 0..4294967295"),
        ({"seed": 2**32}, "seed = 4294967296: must be a seed"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(cascade, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        cascade.draw([PROMPT], **asked)
    assert not cascade.asked


def test_requests_are_checked_before_anything_is_drawn(cascade):
    with pytest.raises(ValueError, match="request 2 names 'txt': must name text; did you mean"):
        cascade.draw([PROMPT, {"txt": "a"}])
    assert not cascade.asked


@pytest.mark.parametrize(("asked", "found"), [(None, 0.1), (0.0, 0.0), (0.5, 0.5)])
def test_an_evaluation_draws_by_the_exports_level_too(asked, found, monkeypatch, make_config):
    config = dataclasses.replace(make_config(), samples=OWN)
    monkeypatch.setattr(Evaluation, "config", config)
    assert Evaluation(Settings("unused", augmentation=asked), None).augmentation == found

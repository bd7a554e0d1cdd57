"""What a run leaves when it ends, and when it goes on."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import quickstart
from contextdiff_jax.config import from_config_dict, with_task
from contextdiff_jax.encoders.weights import load_clip
from contextdiff_jax.runs import train
from contextdiff_jax.tasks.contrastive import TokenizerConfig


class Trained:
    """Stands in for the loop: it ends at once."""

    def __init__(self, task, settings, directory, mesh, metadata, weights):
        directory.mkdir(parents=True, exist_ok=True)
        self.checkpoints, self.encoder = self, directory / "encoder"
        Trained.shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))

    def train(self, open_batches):
        assert not (self.encoder / "finished").exists()  # else a kill now would leave it so

    def close(self):
        pass


@pytest.fixture
def trained_to(tmp_path, monkeypatch):
    """Returns trained_to(value) -> the workdir; the run `clip` ended with weights of that value."""
    config = from_config_dict(quickstart.get_config("test"))
    tokenizer = TokenizerConfig(vocab_size=300, sample=50)
    clip = with_task(config.runs["clip"], tokenizer=tokenizer)
    config = dataclasses.replace(config, runs=config.runs | {"clip": clip})
    monkeypatch.setattr(train, "Trainer", Trained)

    def trained_to(value):
        weights = lambda: jax.tree.map(lambda s: np.full(s.shape, value, s.dtype), Trained.shapes)  # noqa: E731
        monkeypatch.setattr(train, "whole_ema", lambda folder: (weights(), {}))
        train.train_run(config, "clip", train.epath.Path(tmp_path))
        return tmp_path

    return trained_to


def test_a_run_that_goes_on_writes_its_encoder_anew(trained_to):
    """With more steps, say: others must not read the encoder of the first end."""
    for value in (0.25, 0.5):
        _, params = load_clip(trained_to(value) / "clip" / "encoder")
        assert {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(params)} == {value}

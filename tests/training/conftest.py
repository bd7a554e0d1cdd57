"""A task small enough to check by hand: least squares, with the noise a real task would draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.training.loop import LoopSettings, Trainer
from contextdiff_jax.training.optimizer import OptimizerConfig


class LeastSquares:
    """Fits y = x @ w; draws noise per step so that a wrong random stream shows."""

    frozen = {"target": np.arange(1.0, 9.0, dtype=np.float32).reshape(8, 1)}

    def boxed_frozen(self):
        return {"target": nn.LogicallyPartitioned(self.frozen["target"], ("embed", "norm"))}

    def init(self, key):
        w = 0.1 * jax.random.normal(key, (8, 16))
        return {
            "w": nn.LogicallyPartitioned(w, ("embed", "mlp")),
            "b": nn.LogicallyPartitioned(jnp.zeros((16,)), ("mlp",)),
        }

    def loss(self, params, frozen, batch, key):
        noise = 0.01 * jax.random.normal(key, batch["x"].shape)
        predicted = jnp.mean((batch["x"] + noise) @ params["w"] + params["b"], axis=1)
        truth = (batch["x"] @ frozen["target"])[:, 0]
        loss = jnp.mean(jnp.square(predicted - truth)) + jnp.mean(batch["poison"])
        return loss, {"size": jnp.sqrt(jnp.mean(jnp.square(params["w"])))}

    def diagnose(self, params, frozen, batch, key):
        return {"bias": jnp.mean(params["b"])}

    def preview(self, params, frozen, seed):
        return jnp.broadcast_to(jnp.tanh(jnp.mean(params["w"])), (4, 5, 5, 3))


class Stream:
    """Batches that are a function of the position; `poison_at` makes one batch not finite."""

    def __init__(self, position, batch_size=8, poison_at=None):
        self.position, self.batch_size, self.poison_at = position, batch_size, poison_at

    def __iter__(self):
        while True:
            first = self.position
            rows = [np.random.default_rng(first + i).normal(size=8) for i in range(self.batch_size)]
            bad = self.poison_at is not None and first <= self.poison_at < first + self.batch_size
            self.position += self.batch_size
            yield {
                "x": np.asarray(rows, np.float32),
                "poison": np.full((self.batch_size,), np.nan if bad else 0, np.float32),
            }

    def close(self):
        pass


@pytest.fixture
def make_trainer(tmp_path):
    """Returns make(steps, **settings) -> Trainer in tmp_path/run, on one device or a mesh."""

    def make(steps, directory=tmp_path / "run", mesh=None, **changes):
        settings = {
            "steps": steps,
            "batch_size": 8,
            "optimizer": OptimizerConfig(learning_rate=5e-2, warmup_steps=2),
            "seed": 3,
            "log_every": 2,
            "save_every": 4,
            "checkpoints_kept": 2,
            "preview_every": 0,
            "diagnose_every": 0,
        } | changes
        mesh = mesh or make_mesh(MeshConfig(), devices=jax.devices()[:1])
        return Trainer(LeastSquares(), LoopSettings(**settings), directory, mesh, {"config": {}})

    return make


@pytest.fixture
def stream():
    return Stream

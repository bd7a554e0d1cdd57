"""A tiny training on rendered scenes with the entry points' own start-up, run by several processes.

Least squares from the pixels to the caption's length, with noise as a real task draws it. What
each process reads goes to WORKDIR/read.PROCESS.txt, one line of sample indices per batch. Then
features are extracted, as an evaluation would.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import linen as nn

from contextdiff_jax import entry
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation.features import CHUNK, extract_features
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.system import interruption
from contextdiff_jax.training.loop import LoopSettings, Trainer
from contextdiff_jax.training.optimizer import OptimizerConfig

BATCH, SIDE = 16, 8


class Squares:
    """Predicts how long the caption is."""

    frozen = {"offset": np.full((16,), 0.5, np.float32)}

    def init(self, key):
        w = 0.1 * jax.random.normal(key, (SIDE * SIDE * 3, 16))
        return {"w": nn.LogicallyPartitioned(w, ("embed", "mlp"))}

    def boxed_frozen(self):
        return {"offset": nn.LogicallyPartitioned(self.frozen["offset"], ("norm",))}

    def loss(self, params, frozen, batch, key):
        x = batch["image"].reshape(len(batch["image"]), -1) / 255.0
        x = x + 0.01 * jax.random.normal(key, x.shape)
        predicted = jnp.mean(x @ params["w"] + frozen["offset"], axis=1)
        return jnp.mean(jnp.square(predicted - batch["length"])), {}

    def diagnose(self, params, frozen, batch, key):
        return {"largest": jnp.max(jnp.abs(params["w"])) + 0 * jax.random.normal(key)}

    def preview(self, params, frozen, seed):
        return jnp.tanh(params["w"].T.reshape(16, SIDE, SIDE, 3) + frozen["offset"][0])


class Recorded:
    """Batches that write down what they hand out, `pause` seconds apart."""

    def __init__(self, batches, file, pause):
        self._batches, self._file, self._pause = batches, file, pause

    def __iter__(self):
        for batch in self._batches:
            time.sleep(self._pause)
            with self._file.open("a") as file:
                file.write(" ".join(map(str, batch["index"])) + "\n")
            yield batch

    def close(self):
        self._batches.close()


def train(workdir, mesh, steps, pause=0.0):
    """Trains to `steps` in `workdir` and returns the state."""
    data = DataConfig(resolution=SIDE, threads=0)
    source = open_source(data)
    settings = LoopSettings(
        steps=steps,
        batch_size=BATCH,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        seed=3,
        log_every=1,  # a mean over steps would differ where a run was stopped between two
        save_every=4,
        checkpoints_kept=2,
        preview_every=4,
        diagnose_every=4,
    )
    trainer = Trainer(Squares(), settings, workdir, mesh, {"config": {}})
    index, count = distributed.batch_part(mesh)

    def open_batches(position):
        batches = make_batches(
            source,
            data,
            BATCH,
            seed=1,
            tokenize=lambda texts: {"length": np.array([len(t) / 50 for t in texts], np.float32)},
            start_position=position,
            process_index=index,
            process_count=count,
        )
        return Recorded(batches, workdir / f"read.{jax.process_index()}.txt", pause)

    try:
        return trainer.train(open_batches)
    finally:
        trainer.checkpoints.close()


def extract(workdir):
    """Extracts features of three files and a part; what was read goes to WORKDIR/seen.PROCESS."""

    def read(places):
        with (workdir / f"seen.{jax.process_index()}").open("a") as file:
            file.write(f"{places.start}\n")
        return np.stack([np.full((2, 2, 3), place % 256, np.uint8) for place in places])

    def mean(pictures):
        return {"mean": pictures.astype(np.float32).mean((1, 2, 3))[:, None]}

    with interruption.Watch() as watch:
        extract_features(workdir / "features", {}, 3 * CHUNK + 5, read, mean, watch)


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "")
    _MESH = flags.DEFINE_list("mesh", ["2", "2", "2"], "")
    _STEPS = flags.DEFINE_integer("steps", 12, "")
    _PAUSE = flags.DEFINE_float("pause", 0.0, "")
    _PROCESSES = entry.define_process_flags()

    def main():
        entry.join(_PROCESSES())
        mesh = make_mesh(MeshConfig(*map(int, _MESH.value)))
        workdir = pathlib.Path(_WORKDIR.value)
        train(workdir, mesh, _STEPS.value, _PAUSE.value)
        extract(workdir)

    entry.run(main)

"""Tunes a U-Net of clips on the clip that is to be edited; the weights serve later edits too."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from etils import epath

from contextdiff_jax.data.clips import Clip
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.encoders.video_weights import save_video_unet_folder
from contextdiff_jax.generation.clip_programs import ClipNetwork
from contextdiff_jax.generation.editing_config import TuningConfig
from contextdiff_jax.generation.network_file import save_network
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.programs import jit_on_mesh
from contextdiff_jax.parallel.sharding import batch_sharding
from contextdiff_jax.system.interruption import Interrupted, Vote, Watch
from contextdiff_jax.system.progress import Progress, duration
from contextdiff_jax.tasks.clip_adapter import COLOURS
from contextdiff_jax.tasks.clip_control import HINTS
from contextdiff_jax.tasks.video_editing import ClipTask
from contextdiff_jax.training.failure import NotFinite
from contextdiff_jax.training.optimizer import OptimizerConfig, make_optimizer
from contextdiff_jax.training.parameter_names import like, merged, without
from contextdiff_jax.training.partial import fixed_shapes, trained_part
from contextdiff_jax.training.state import TrainState
from contextdiff_jax.training.step import make_train_step

FOLDER = "tuned"
_LOGGED = 50  # steps between looks


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What is tuned: a network's parameters on the devices, on a clip and its prompt.

    params, frozen: what the network's programs take. batch: of `collate` for the prompt.
    """

    network: ClipNetwork
    params: Any
    frozen: Any
    clip: Clip
    batch: Any
    mesh: jax.sharding.Mesh

    def task(self) -> ClipTask:
        """Returns the task, clip and prompt encoded."""
        frames = distributed.place(self.clip.frames, batch_sharding(self.mesh))
        program = jit_on_mesh(functools.partial(encode, self.network), self.mesh)
        encoded = program(self.frozen, frames, self.batch)
        return clip_task(self.network, encoded, jnp.asarray(self.batch["text_mask"]), self.frozen)


def encode(network: ClipNetwork, frozen: Any, frames: jax.Array, batch: Any) -> tuple:
    """Returns the clip's mean latents and their deviation (or None), and the prompt's tokens."""
    mean, deviation = network.space(frozen).mean_and_deviation(frames)
    return mean, deviation, network.text(frozen, batch)[0]


def clip_task(
    network: ClipNetwork,
    encoded: tuple,
    mask: jax.Array,
    frozen: Any,
    remat: Literal["none", "blocks"] = "blocks",
) -> ClipTask:
    """Returns the task of tuning: encoded of `encode`, mask of the prompt, frozen the network's."""
    denoiser, adapter, control = network.task.denoiser, network.adapter, network.control
    sizes = dataclasses.replace(denoiser.config, remat=remat)
    module = LatentUNet(sizes, denoiser.dtype, video=network.config.inflation)
    process = Process(network.task.schedule, network.task.config.prediction, None, None)
    read = {}
    if adapter is not None:
        read = {name: frozen[name] for name in (adapter.image.identity, COLOURS)}
    if control is not None:
        read |= {HINTS: frozen[HINTS]}
        unet = dataclasses.replace(control.sizes.unet, remat=remat)
        control = dataclasses.replace(control, sizes=dataclasses.replace(control.sizes, unet=unet))
    return ClipTask(module, process, *encoded, mask, adapter, control, read)


def tuning_optimizer(config: TuningConfig) -> optax.GradientTransformation:
    """Returns the optimizer of tuning."""
    settings = OptimizerConfig(
        learning_rate=config.learning_rate,
        warmup_steps=0,
        weight_decay=config.weight_decay,
        ema_decay=0.0,
    )
    return make_optimizer(settings, config.steps)


def check_trainable(task: ClipTask, config: TuningConfig) -> Any:
    """Returns the shapes of what is not trained; ValueError for a pattern that matches nothing."""
    return fixed_shapes(task, config.trainable, "config.tuning.trainable")


def tune(tuning: Tuning, folder: epath.Path, seed: int, watch: Watch) -> Any:
    """Returns the tuned parameters, and writes them to `folder` as a U-Net's folder.

    Those of an adapter and of a control branch are beside it, see network_file.py.

    Raises NotFinite where the loss or its gradient is not; Interrupted once the watch was
    triggered: tuning then begins anew.
    """
    config, task = tuning.network.config.tuning, tuning.task()
    fixed = check_trainable(task, config)
    whole = tuning.params
    part = trained_part(task, like(whole, fixed))
    params = jax.tree.map(jnp.copy, without(whole, fixed))  # the step donates its state
    optimizer = tuning_optimizer(config)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        optimizer=jit_on_mesh(optimizer.init, tuning.mesh)(params),
        failed_at=jnp.full((), -1, jnp.int32),
    )
    step = make_train_step(part, optimizer, seed=seed, ema_decay=0.0)
    program = jit_on_mesh(step, tuning.mesh, donate_argnums=0)
    state = _run(lambda state: program(state, part.frozen, {}), state, config.steps, watch)
    tuned = merged(whole, state.params)
    _save(folder, tuning, tuned)
    return tuned


def _run(program: Any, state: TrainState, steps: int, watch: Watch) -> TrainState:
    progress, vote, losses = Progress(0, steps), Vote(), []
    for number in range(1, steps + 1):
        if vote.stop(watch.triggered):
            raise Interrupted(0, "tuning step")
        state, metrics = program(state)
        losses.append(metrics["loss"])
        if number % _LOGGED and number < steps:
            continue
        failed = int(state.failed_at)
        if failed >= 0:
            raise NotFinite(
                f"tuning: loss or gradient of step {failed + 1} is not finite (NaN or infinite); "
                "nothing was written; lower config.tuning.learning_rate"
            )
        rate, left = progress.look(number)
        mean = float(np.mean(jax.device_get(losses)))
        logging.info(
            "tuning step %d of %d: loss %.4f, %.1f steps/s, %s left",
            *(number, steps, mean, rate, duration(left)),
        )
        losses.clear()
    return state


def _save(folder: epath.Path, tuning: Tuning, params: Any) -> None:
    host = jax.tree.map(distributed.to_host, params)
    if distributed.is_main():
        sizes, video = tuning.network.task.denoiser.config, tuning.network.config.inflation
        for name in sorted(set(host) - {"denoiser"}):
            save_network(folder, name, host[name])
        save_video_unet_folder(folder, sizes, video, host["denoiser"])  # config.json comes last
    distributed.wait_for_all(f"{folder} is written")

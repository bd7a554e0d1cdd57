"""The training step of a run that trains a part, lowered from shapes alone."""

import dataclasses
import re

import jax
from flax import linen as nn

from configs import quickstart
from contextdiff_jax.compilation.lower import lower_training
from contextdiff_jax.config import WarmStartConfig, from_config_dict
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.runs.abstract import abstract_task


def test_what_is_not_trained_is_an_input_beside_the_state():
    config = from_config_dict(quickstart.get_config("test"))
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    # A run that begins from a plain one: the denoiser is given, the adapter is trained.
    run = dataclasses.replace(
        config.runs["base"],
        start_from=WarmStartConfig("plain/base", fresh=("adapter",)),
        trainable=("adapter",),
    )
    config = dataclasses.replace(config, runs={**config.runs, "base": run})
    task = abstract_task(config, "base")
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    batch = task.batch_shapes(run.batch_size)
    trained, given, rest = map(count, (shapes["adapter"], shapes["denoiser"], (task.frozen, batch)))
    program = lower_training(config, "base", mesh)
    assert program.parameters == trained
    # Parameters, EMA and two moments of what is trained; the weights alone of what is given.
    scalars = 5  # steps, the failure's step
    inputs = count(program.lowered.in_avals)
    assert 4 * trained + given + rest <= inputs <= 4 * trained + given + rest + scalars
    assert re.search(
        rf"^frozen .* of {(4 * (given + count(task.frozen))) / 2**20:.1f}$",
        "\n".join(program.memory),
        re.M,
    )


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

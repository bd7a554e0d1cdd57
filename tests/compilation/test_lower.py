"""The training step of a run that trains a part, lowered from shapes alone."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from configs import quickstart, stable_diffusion
from contextdiff_jax.compilation.lower import lower_training
from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.config import WarmStartConfig, from_config_dict, with_task
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


@pytest.mark.slow
def test_latents_computed_before_take_the_pictures_place():
    """No first stage is left to compute: what its convolutions do is not in the program."""
    config = from_config_dict(stable_diffusion.get_config("taef2"))
    mesh, found = make_mesh(MeshConfig(data=8)), {}
    for latents in ("", "latents"):
        data = dataclasses.replace(config.runs["base"].data, path="data", latents=latents)
        run = dataclasses.replace(config.runs["base"], data=data)
        run = with_task(run, adapter=None)
        runs = {**config.runs, "base": run}
        asked = dataclasses.replace(config, use_adapter=False, runs=runs)
        found[latents] = lower_training(asked, "base", mesh)
    stage = abstract_task(config, "base").first_stage
    pictures = jax.ShapeDtypeStruct((32, 64, 64, 3), jnp.float32)
    encoding = model_flops(
        lambda params, x: stage.module.apply({"params": params}, x, method="encode"),
        stage.params,
        pictures,
    )
    saved = found[""].model_flops - found["latents"].model_flops
    assert saved == pytest.approx(encoding, rel=1e-6)
    shapes = {leaf.shape for leaf in jax.tree.leaves(found["latents"].lowered.in_avals)}
    assert (32, 8, 8, 32) in shapes and (32, 64, 64, 3) not in shapes


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

"""Every parameter of every network carries names from the table, one per array axis."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from contextdiff_jax.networks import axes
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.autoencoder import Autoencoder
from contextdiff_jax.networks.config import contextdiff_adapter, imagen_base, imagen_sr
from contextdiff_jax.networks.efficient_unet import EfficientUNet
from contextdiff_jax.networks.latent_config import kl_f8, stable_diffusion_1, taef2, vq_f8
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.tiny_autoencoder import TinyAutoencoder
from contextdiff_jax.networks.unet import UNet

TEXT = jnp.zeros((1, 4, 4096))


def base(scan):
    module = UNet(dataclasses.replace(imagen_base(), scan_blocks=scan))
    return module, (jnp.zeros((1, 64, 64, 3)), jnp.ones(1), TEXT)


def super_resolution(scan):
    module = EfficientUNet(dataclasses.replace(imagen_sr(), scan_blocks=scan))
    low_res, level = jnp.zeros((1, 64, 64, 3)), jnp.zeros(1)
    return module, (jnp.zeros((1, 256, 256, 3)), jnp.ones(1), TEXT, None, None, low_res, level)


def adapter(_):
    inputs = (jnp.zeros((1, 64, 64, 3)), jnp.ones(1), jnp.zeros((1, 50, 768)))
    return Adapter(contextdiff_adapter()), (*inputs, jnp.zeros((1, 77, 512)))


def latent(scan):
    module = LatentUNet(dataclasses.replace(stable_diffusion_1(), scan_blocks=scan))
    return module, (jnp.zeros((1, 8, 8, 4)), jnp.ones(1), jnp.zeros((1, 77, 768)))


def first_stage_kl(_):
    return Autoencoder(kl_f8()), (jnp.zeros((1, 8, 8, 3)),)


def first_stage_vq(_):
    return Autoencoder(vq_f8()), (jnp.zeros((1, 8, 8, 3)),)


def first_stage_tiny(_):
    return TinyAutoencoder(taef2()), (jnp.zeros((1, 8, 8, 3)),)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        *(base, super_resolution, adapter, latent),
        *(first_stage_kl, first_stage_vq, first_stage_tiny),
    ],
)
def test_every_parameter_is_named(network, scan):
    module, inputs = network(scan)
    boxed = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path)
        assert isinstance(leaf, nn.LogicallyPartitioned), where
        assert len(leaf.names) == leaf.value.ndim, where
        assert set(leaf.names) <= set(axes.AXES), where
        assert len(set(leaf.names)) == len(leaf.names), where
        assert (axes.LAYERS in leaf.names) == ("'blocks_" in where), where
        # What is left whole by every sensible rule must be small.
        if leaf.value.size > 1e5:
            assert set(leaf.names) & {axes.EMBED, axes.CONTEXT, axes.CONV_IN, axes.HEADS}, where


def test_table_describes_every_constant():
    names = {k: v for k, v in vars(axes).items() if k.isupper() and isinstance(v, str)}
    constants = {v for k, v in names.items() if not k.endswith("_MESH_AXIS")}
    assert constants == set(axes.AXES)
    assert all(axes.AXES.values())

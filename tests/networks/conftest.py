"""Random parameters without compiling an initializer, and the layers written anew in torch."""

import flax.linen as nn
import jax
import numpy as np
import pytest


@pytest.fixture(scope="session")
def random_params():
    """Returns a function: module and inputs to unboxed random parameters, nothing left at zero."""

    def draw(module, *args, seed=0, **kwargs):
        abstract = jax.eval_shape(lambda rng: module.init(rng, *args, **kwargs), jax.random.key(0))
        rng = np.random.default_rng(seed)

        def leaf(path, value):
            noise = rng.standard_normal(value.shape).astype(np.float32)
            if path[-1].key == "kernel":
                return noise / np.sqrt(np.prod(value.shape[:-1]))
            return 0.3 * noise + (path[-1].key == "scale")

        return jax.tree_util.tree_map_with_path(leaf, nn.unbox(abstract)["params"])

    return draw


@pytest.fixture(scope="session")
def oracle():
    """The layers in torch, see tests/networks/torch_layers.py."""
    pytest.importorskip("torch")
    from tests.networks import torch_layers

    return torch_layers

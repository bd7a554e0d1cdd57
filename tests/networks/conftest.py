"""The layers written anew in torch."""

import pytest


@pytest.fixture(scope="session")
def oracle():
    """The layers in torch, see tests/networks/torch_layers.py."""
    pytest.importorskip("torch")
    from tests.networks import torch_layers

    return torch_layers

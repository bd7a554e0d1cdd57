"""Gaussian data with a linear adapter, for which the best denoiser has a closed form."""

import pytest

from tests.oracles.gaussian_data import GaussianData


@pytest.fixture
def gaussian_data():
    return GaussianData

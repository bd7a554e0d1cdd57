"""One device for what draws with Stable Diffusion's networks."""

import jax
import pytest

from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.parallel.mesh import make_mesh


@pytest.fixture
def one_device(monkeypatch):
    """Eight virtual ones would take eight times as long; what is drawn on them is tested once."""
    device = jax.devices()[:1]
    monkeypatch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, device))

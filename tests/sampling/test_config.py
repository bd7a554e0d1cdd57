"""The sampler's configuration: its defaults hold, each bad value is named."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.sampling.config import SamplerConfig


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "ddim", "eta": 0.5},
        {"guidance_scale": 0.0},
        {"threshold": "dynamic", "max_threshold": 1.5},
        {"guidance_low": 0.2, "guidance_high": 5.0},
    ],
)
def test_good_values(values):
    SamplerConfig(**values).validate("sampler")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "lms"}, r"runs.base.name = 'lms': must be one of ddpm, ddim, dpm_solver\+\+"),
        ({"threshold": "dynamical"}, r"runs.base.threshold = 'dynamical': .*none, static, dynamic"),
        (
            {"name": "ddpm", "eta": 0.5},
            r"runs.base.eta = 0.5: must be 0.0, the default, ddpm does not read it",
        ),
        ({"name": "ddim", "eta": 1.5}, r"runs.base.eta = 1.5: must be in 0..1"),
        ({"guidance_scale": -1.0}, r"runs.base.guidance_scale = -1.0: must be at least 0"),
        ({"guidance_scale": float("nan")}, r"guidance_scale = nan"),
        ({"guidance_low": -0.1}, r"guidance_low = -0.1: must be at least 0, or None"),
        (
            {"guidance_low": 2.0, "guidance_high": 1.0},
            r"guidance_high = 1.0: must be above 2.0, or None",
        ),
        ({"percentile": 0.0}, r"runs.base.percentile = 0.0: must be in \(0, 100\]"),
        ({"max_threshold": 1.5}, r"max_threshold = 1.5: must be None, the default, threshold none"),
        (
            {"threshold": "dynamic", "max_threshold": 0.5},
            r"max_threshold = 0.5: must be at least 1",
        ),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**values).validate("runs.base")


def test_frozen_hashable_and_its_times():
    config = SamplerConfig("ddim", 5, "leading", offset=1, final_timestep=1)
    assert hash(config) == hash(dataclasses.replace(config))
    np.testing.assert_array_equal(
        config.timesteps(make_schedule("scaled_linear", 1000)), [802, 602, 402, 202, 2, 1]
    )

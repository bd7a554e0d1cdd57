"""Sampler settings from the command line."""

import pytest

from contextdiff_jax.generation.sampler_flags import overridden, parse_overrides
from contextdiff_jax.sampling.config import SamplerConfig


def test_settings_for_every_stage_and_for_one():
    found = parse_overrides(["num_steps=5", "sr.eta=0.5", "base.name=ddim"], ["base", "sr"])
    assert found == {"base": {"num_steps": 5, "name": "ddim"}, "sr": {"num_steps": 5, "eta": 0.5}}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("num_steps", "must be field=value"),
        ("top.num_steps=3", "stage must be one of base, sr"),
        ("num_stepz=3", "field must be one of eta, final_timestep"),
    ],
)
def test_unreadable_settings(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse_overrides([setting], ["base", "sr"])


def test_types_and_choices_are_checked():
    assert overridden(SamplerConfig(), {"eta": 0}, "sampler").eta == 0.0
    with pytest.raises(ValueError, match="sampler.num_steps = 'x': must be int"):
        overridden(SamplerConfig(), {"num_steps": "x"}, "sampler")
    with pytest.raises(ValueError, match="sampler.name = 'unipc': must be one of ddpm"):
        overridden(SamplerConfig(), {"name": "unipc"}, "sampler")

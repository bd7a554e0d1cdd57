"""Configurations: presets are valid, hashable and documented; mistakes end in one sentence."""

import dataclasses

import pytest

from contextdiff_jax.networks.config import (
    AdapterConfig,
    EfficientUNetConfig,
    UNetConfig,
    contextdiff_adapter,
    imagen_base,
    imagen_sr,
)

PRESETS = [imagen_base(), imagen_sr(), contextdiff_adapter()]


@pytest.mark.parametrize("config", PRESETS)
def test_presets_are_valid_hashable_and_documented(config):
    config.validate()
    assert hash(config) == hash(dataclasses.replace(config))
    documentation = "".join(kind.__doc__ or "" for kind in type(config).__mro__)
    for field in dataclasses.fields(config):
        assert f"      {field.name}: " in documentation, field.name


def test_imagen_sizes():
    base, sr = imagen_base(), imagen_sr()
    assert base.channels == (512, 1024, 1536, 2048)
    assert (base.reduction, sr.reduction) == (8, 16)
    assert sr.low_res


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (UNetConfig(), {"width": 0}, "net.width = 0: must be at least 1"),
        (UNetConfig(), {"width": 33, "groups": 1}, "net.width = 33: must be even"),
        (
            UNetConfig(),
            {"multipliers": ()},
            r"net.multipliers = \(\): must be integers of at least 1",
        ),
        (
            UNetConfig(),
            {"multipliers": (1, 0)},
            r"net.multipliers = \(1, 0\): must be integers of at",
        ),
        (UNetConfig(), {"groups": 48}, "net.groups = 48: must divide the 512 .* level 0"),
        (
            UNetConfig(),
            {"attention_levels": (4,)},
            r"net.attention_levels = \(4,\): must be .* 0 to 3",
        ),
        (UNetConfig(), {"head_dim": 96}, "net.head_dim = 96: must divide the 1024"),
        (UNetConfig(), {"text_width": 100}, "net.head_dim = 64: must divide the 100 .* text"),
        (UNetConfig(), {"text_dim": None}, "net.text_width = 2048: must be None, as text_dim is"),
        (UNetConfig(), {"text_dim": 0}, "net.text_dim = 0: must be at least 1"),
        (UNetConfig(), {"null": "mean"}, "net.null = 'mean': must be one of learned, zeros"),
        (UNetConfig(), {"remat": "all"}, "net.remat = 'all': must be one of none, blocks"),
        (UNetConfig(), {"remat_levels": 5}, r"net.remat_levels = 5: must be from 0 .* to 4"),
        (
            UNetConfig(),
            {"attention_implementation": "fused"},
            "net.attention_implementation = 'fused': must be one of auto, xla, cudnn, flash",
        ),
        (
            EfficientUNetConfig(),
            {"num_blocks": (2, 4)},
            r"net.num_blocks = \(2, 4\): must have 4 entries",
        ),
        (
            EfficientUNetConfig(),
            {"strides": (4, 2, 2, 2)},
            r"net.strides = \(4, .*: must be 1 or 2 for each level",
        ),
        (EfficientUNetConfig(), {"heads": 3}, "net.heads = 3: must divide the 1024"),
        (EfficientUNetConfig(), {"groups": 48}, "net.groups = 48: must divide the 128"),
        (EfficientUNetConfig(), {"remat": "all"}, "net.remat = 'all': must be one of"),
        (AdapterConfig(), {"heads": 7}, "net.heads = 7: must divide the 768"),
        (AdapterConfig(), {"width": 30, "heads": 2}, "net.width = 30: must be a multiple of 4"),
        (AdapterConfig(), {"time_width": 5}, "net.time_width = 5: must be even"),
        (
            AdapterConfig(),
            {"attention_implementation": ""},
            "net.attention_implementation = '': must be one of",
        ),
        (AdapterConfig(), {"limit": 0.0}, "net.limit = 0.0: must be a positive number or None"),
    ],
)
def test_values_that_cannot_work_are_named(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes).validate("net")


def test_resolutions_that_do_not_fit_are_named():
    for config, good, bad in zip(PRESETS, (64, 256, 64), (60, 264, 60), strict=True):
        config.check_resolution(good)
        factor = {UNetConfig: 8, EfficientUNetConfig: 16, AdapterConfig: 8}[type(config)]
        for resolution in (bad, 0):
            with pytest.raises(
                ValueError, match=f"data.resolution = {resolution}: must be a multiple of {factor}"
            ):
                config.check_resolution(resolution, "data.resolution")

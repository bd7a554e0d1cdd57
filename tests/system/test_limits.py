"""Every number that a config, an export or an encoder may have has a largest value in the table."""

import dataclasses
import importlib
import math
import pathlib
import typing

import pytest

from contextdiff_jax import config as cfg
from contextdiff_jax.encoders.config import CLIP_PRESETS, T5_PRESETS, T5Config
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.latent_config import FirstStageConfig, LatentUNetConfig
from contextdiff_jax.runs.description import Export
from contextdiff_jax.system.limits import LIMITS, MOST_LEVELS, check_limits
from contextdiff_jax.tasks.task_config import TaskConfig, registered

# Shares, probabilities, labels: `validate` of their section has both ends.
SHARES = {"augmentation", "b1", "b2", "ema_decay", "pairs", "bare", "drop_condition", "drop_both"}
SHARES |= {"eta", "percentile", "labels"}


def sections(kind):
    """Yields the dataclasses that a type consists of."""
    if kind is TaskConfig:
        for member in registered().values():
            if member.__module__.startswith("contextdiff_jax."):  # not those of other tests
                yield from sections(member)
    if dataclasses.is_dataclass(kind):
        yield kind
        kinds = typing.get_type_hints(kind).values()
    else:
        kinds = typing.get_args(kind)
    for inner in kinds:
        yield from sections(inner)


def numbers(kind):
    if kind in (int, float):
        return True
    return typing.get_origin(kind) is not typing.Literal and any(
        map(numbers, typing.get_args(kind))
    )


def owner(section, name):
    """The class whose entry covers a field: the first that has one, else the section itself."""
    named = [base.__name__ for base in section.__mro__]
    return next((base for base in named if name in LIMITS.get(base, {})), named[0])


def beside(section, name):
    """Whether the field's limit stands beside it."""
    return any("most" in f.metadata for f in dataclasses.fields(section) if f.name == name)


def test_the_table_has_every_number_and_nothing_else():
    found = {
        (owner(section, name), name)
        for kind in (Export, T5Config, LatentUNetConfig, FirstStageConfig)
        for section in sections(kind)
        for name, kind in typing.get_type_hints(section).items()
        if numbers(kind) and name not in SHARES and not beside(section, name)
    }
    assert found == {(section, name) for section, fields in LIMITS.items() for name in fields}


@pytest.mark.parametrize("value", [10**5, -(10**5), math.nan, math.inf, 10**400])
def test_a_number_beyond_its_limit_is_named(value):
    with pytest.raises(ValueError, match=r"^here\.width = .*: must be at most 16,384$"):
        check_limits(dataclasses.replace(UNetConfig(), width=value), "here")


def test_numbers_in_tuples_and_their_count_are_limited():
    with pytest.raises(ValueError, match=r"^here\.multipliers = 65: must be at most 64$"):
        check_limits(UNetConfig(multipliers=(1, 65)), "here")
    with pytest.raises(
        ValueError, match=f"multipliers has 13 entries: must be at most {MOST_LEVELS}"
    ):
        check_limits(UNetConfig(multipliers=(1,) * 13), "here")


def test_what_is_published_is_within_the_limits():
    for config in (*CLIP_PRESETS.values(), *T5_PRESETS.values()):
        config.validate("preset")


def test_overrides_of_a_config_are_limited_too():
    root = pathlib.Path(__file__).parent.parent
    for path in set((root / "configs").glob("*.py")) - {root / "configs/video_editing.py"}:
        config = importlib.import_module(f"configs.{path.stem}").get_config()
        cfg.from_config_dict(config)
        for run in config.runs.values():
            run.steps = 10**10
        with pytest.raises(cfg.ConfigError, match=r"steps = 10000000000: must be at most 1,000,00"):
            cfg.from_config_dict(config)

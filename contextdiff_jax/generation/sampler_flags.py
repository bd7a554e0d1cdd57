"""Sampler settings from the command line, typed and checked against SamplerConfig."""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from contextdiff_jax.config import Config, read_section
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.system.suggestions import nearest


def parse_overrides(settings: Sequence[str], stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns {stage: {field: value}} from "field=value" (every stage) or "stage.field=value".

    Raises ValueError naming an unknown stage, an unknown field, or what is not "name=value".
    """
    found: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    fields = {field.name for field in dataclasses.fields(SamplerConfig)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        stage, dot, field = key.rpartition(".")
        if not equals:
            raise ValueError(f"--sampler={setting}: must be field=value or stage.field=value")
        if dot and stage not in found:
            known = ", ".join(stages)
            near = nearest(stage, stages)
            raise ValueError(f"--sampler={setting}: stage must be one of {known}{near}")
        if field not in fields:
            raise ValueError(
                f"--sampler={setting}: field must be one of {', '.join(sorted(fields))}"
                f"{nearest(field, fields)}"
            )
        for name in [stage] if dot else stages:
            found[name][field] = typed(text)
    return found


def overridden(sampler: SamplerConfig, changes: Mapping[str, Any], where: str) -> SamplerConfig:
    """Returns the sampler with some fields changed, each checked for its type and choices."""
    return read_section(SamplerConfig, dataclasses.asdict(sampler) | dict(changes), where)


def asked_samplers(
    config: Config, stages: Sequence[str], settings: Sequence[str]
) -> dict[str, SamplerConfig]:
    """Returns the sampler of each stage, with these settings.

    Raises ValueError for settings that are not allowed, or do not serve a stage's process.
    """
    found = {}
    for name, changes in parse_overrides(settings, stages).items():
        run, where = config.runs[name], f"sampler of {name}"
        found[name] = overridden(run.task.sampler, changes, where)
        found[name].validate(where)
        run.task.check_sampler(found[name], where, run.data.resolution, config.use_adapter)
    return found


def typed(text: str) -> Any:
    """Returns the Python literal that a setting's value is, or the plain word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # e.g. ddim

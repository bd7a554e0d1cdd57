"""export.json: what an export says of itself, checked like a config before anything is loaded."""

import dataclasses
from typing import Any, Literal

from etils import epath

from contextdiff_jax.config import (
    Config,
    ConfigError,
    EncoderRef,
    check_name,
    read_section,
    with_data_path,
)
from contextdiff_jax.config_upgrade import upgraded
from contextdiff_jax.runs.build import RUN_PREFIX, diffusion_runs
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.system import buckets
from contextdiff_jax.system.json_files import read_object

FORMAT = 2
READABLE = (1, 2)  # of format 1 the config has another form, see config_upgrade


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """step: the training step of the weights. encoders: identities of those trained with."""

    step: int
    encoders: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Export:
    """The content of export.json.

    stages: the first stages of the config's pipeline, in its order. dtype: of the stored weights.
    versions: of the packages that trained, for people.
    """

    format: int
    stages: dict[str, StageRecord]
    config: Config
    dtype: Literal["float32", "bfloat16"] = "float32"
    versions: dict[str, str] = dataclasses.field(default_factory=dict)


def read_description(file: epath.Path) -> Export:
    """Returns what export.json says.

    Raises ConfigError naming the file and the first thing in it that is not allowed.
    """
    with buckets.explained(file, "be read"):
        content = read_object(file)
    if content.get("format") not in READABLE:
        raise ConfigError(
            f"{file}: format = {str(content.get('format'))[:40]!r}: must be one of "
            f"{', '.join(map(str, READABLE))}, those that this version reads"
        )
    try:
        return _read(content)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _read(content: dict[str, Any]) -> Export:
    if "config" in content:
        content = {**content, "config": upgraded(content["config"])}
    export = read_section(Export, content, "export")
    config = with_data_path(export.config)
    validate(config, files=False, platform=None)
    if not export.stages:
        raise ConfigError("export.stages is empty: must hold one stage or more")
    names = diffusion_runs(config)
    if list(export.stages) != names[: len(export.stages)]:
        raise ConfigError(
            f"export.stages are {', '.join(export.stages)}: must be the first of "
            f"{', '.join(names) or '(none)'}, the stages of its config, in that order"
        )
    for ref in references(config):
        if ref.path.startswith(RUN_PREFIX):
            check_name(ref.path.removeprefix(RUN_PREFIX), "export.config.encoders")
    return dataclasses.replace(export, config=config)


def references(config: Config) -> list[EncoderRef]:
    """Returns the encoders that a pipeline's stages read, first stages too, each once."""
    tasks = [config.runs[name].task for name in diffusion_runs(config)]
    read = {key for task in tasks for key in task.encoders(config.use_adapter)}
    refs = [getattr(config.encoders, key) for key in ("text", "clip") if key in read]
    refs += [EncoderRef(path=folder) for task in tasks for folder in task.folders()]
    return list(dict.fromkeys(refs))

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
from contextdiff_jax.runs.build import RUN_PREFIX, diffusion_runs
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.system import buckets
from contextdiff_jax.system.json_files import read_object

FORMAT = 1


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
    with buckets.named(file, "be read"):
        content = read_object(file)
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{file}: format = {str(content.get('format'))[:40]!r}: must be {FORMAT}, the one this "
            "version reads"
        )
    try:
        return _read(content)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error


def _read(content: dict[str, Any]) -> Export:
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
    """Returns the encoders that a pipeline's stages read, each once."""
    refs = [config.encoders.text] + ([config.encoders.clip] if config.use_adapter else [])
    return list(dict.fromkeys(refs))

"""The experiment's configuration: typed sections, and reading them from an ml_collections config.

A config file builds a `Config` and returns `to_config_dict(config)`, so that every key can be
overridden on the command line (`--config.runs.base.steps=100`). `from_config_dict` reads the
result back, refusing unknown keys, wrong types, values outside a choice and sizes above
`limits.LIMITS` with one sentence.
`validate` (in `validation.py`) then checks what depends on several keys or on the machine.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

import ml_collections

from contextdiff_jax.config_upgrade import upgraded
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.parallel.mesh import MeshConfig
from contextdiff_jax.system.limits import check_limits
from contextdiff_jax.system.resumed import ADVISED, FREE
from contextdiff_jax.system.scalars import read_scalar, shown
from contextdiff_jax.system.suggestions import nearest
from contextdiff_jax.tasks.task_config import TaskConfig, registered
from contextdiff_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class EncoderRef:
    """A frozen encoder: a Hugging Face safetensors folder, or "run:NAME" of the same pipeline.

    max_length: tokens per prompt; None takes what the tokenizer records (T5's records none).
    """

    kind: Literal["clip", "t5"] = "clip"
    path: str = "run:clip"
    max_length: int | None = None


@dataclasses.dataclass(frozen=True)
class EncodersConfig:
    """text: what the denoiser reads. clip: what the adapter reads (images and text)."""

    text: EncoderRef = EncoderRef()
    clip: EncoderRef = EncoderRef()


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """The weights that a run starts from; each parameter is taken from there, or begins anew.

    path: "run:NAME" of the same pipeline, before this run, for its newest EMA; or a folder: of a
    run, WORKDIR/RUN, of a stage of an export, EXPORT/STAGE, unet/ of Stable Diffusion, or one with
    a single file of CompVis. Empty: all parameters begin anew.
    parts: patterns of the parameters there that are taken; () for all of the networks that the run
    has too. fresh: patterns of the run's parameters that begin anew. Patterns: see
    training/parameter_names.py, e.g. "denoiser/**/*attn". What fits neither is refused.
    """

    path: str = ""
    parts: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run.

    task: what it optimises, by `kind`, with the sections that this task reads: see
    contextdiff_jax/tasks, one file each.
    batch_size is global. save_every also names the checkpoints kept, `checkpoints_kept` of them.
    start_from: weights to begin with. trainable: patterns of the parameters that are trained, as
    start_from has them; () for all. The others stay as start_from gives them, and no checkpoint
    holds them.
    """

    task: TaskConfig
    data: DataConfig
    batch_size: int = dataclasses.field(metadata=ADVISED)
    steps: int = dataclasses.field(metadata=FREE)
    optimizer: OptimizerConfig = OptimizerConfig()
    log_every: int = dataclasses.field(default=100, metadata=FREE)
    save_every: int = dataclasses.field(default=1000, metadata=FREE)
    checkpoints_kept: int = dataclasses.field(default=2, metadata=FREE)
    # What a run began with, and what its state holds, may not change.
    start_from: WarmStartConfig = WarmStartConfig()
    trainable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class SamplesConfig:
    """What a finished pipeline draws: prompts, one picture each, from the EMA weights.

    seed: in 0..2^32 - 1. augmentation: noise level of the low-resolution image in
    super-resolution, 0 is clean. An export keeps these: sample.py draws by seed, batch_size and
    augmentation, evaluate.py by augmentation, where their flags are left out.
    """

    prompts: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 16
    augmentation: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A pipeline of training runs, done in the order of `pipeline`; finished ones are skipped.

    seed: of all training, in 0..2^32 - 1.
    data_path: the path of the data of every run that names none itself.
    model: a folder of Stable Diffusion in diffusers' layout. Paths of encoders, of first stages
    and of start_from that are "model:PART" lie in it.
    use_adapter: False trains and samples the same networks without the context-aware adapter.
    dtype: compute dtype; "auto" is bfloat16 on accelerators and float32 on CPU.
    """

    name: str
    runs: dict[str, RunConfig]
    pipeline: tuple[str, ...]
    seed: int = 0
    data_path: str = ""
    model: str = ""
    use_adapter: bool = True
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=FREE)
    encoders: EncodersConfig = EncodersConfig()
    samples: SamplesConfig = SamplesConfig()


MODEL_PREFIX = "model:"
_PATHS = ("path", "decoder")  # keys whose values may begin so

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ConfigError(ValueError):
    """A key of the config is unknown, missing, of a wrong type or of a value not allowed."""


def check_preset(preset: str, presets: Sequence[str]) -> None:
    """Raises ValueError naming what there is, unless a config file has this preset."""
    if preset not in presets:
        known = ", ".join(map(repr, presets))
        raise ValueError(f"preset {preset!r}: must be one of {known}{nearest(preset, presets)}")


def few_steps(config: Config) -> Config:
    """Returns a config of a CLIP and one drawing run, "clip" and "base", for tests.

    The same code path in a few steps of fewer layers.
    """
    runs = {
        name: dataclasses.replace(run, steps=4, batch_size=8, log_every=2, save_every=2)
        for name, run in config.runs.items()
    }
    clip: Any = runs["clip"].task
    base: Any = runs["base"].task
    one_layer = dataclasses.replace(clip.clip, text_layers=1, vision_layers=1)
    short = {
        "clip": with_task(runs["clip"], clip=one_layer),
        "base": with_task(
            runs["base"],
            adapter=dataclasses.replace(base.adapter, num_blocks=1),
            preview=dataclasses.replace(base.preview, every=4, num_steps=2),
            sampler=dataclasses.replace(base.sampler, num_steps=2),
            diagnose_every=4,
        ),
    }
    return dataclasses.replace(config, runs=short)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """Returns the config as an ml_collections.ConfigDict, overridable from the command line."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def from_config_dict(config: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Returns the typed config, or raises ConfigError naming the key, its value and the choice."""
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    values = upgraded(values)
    if isinstance(values, dict):
        values = _in_model(values, values.get("model"), "config")
    return with_data_path(_read(Config, values, "config"))


def _in_model(values: dict[str, Any], model: Any, where: str) -> dict[str, Any]:
    """Returns nested sections with paths in the folder `model` in the place of "model:PART"."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _in_model(value, model, f"{where}.{key}")
        elif key in _PATHS and isinstance(value, str) and value.startswith(MODEL_PREFIX):
            if not model or not isinstance(model, str):
                raise ConfigError(
                    "config.model is empty: must be a folder of Stable Diffusion in diffusers' "
                    f"layout, {where}.{key} = {value!r} lies in it"
                )
            value = f"{model.rstrip('/') or '/'}/{value.removeprefix(MODEL_PREFIX)}"
        found[key] = value
    return found


def with_data_path(config: Config) -> Config:
    """Returns the config with its data_path in every run that names none itself."""
    runs = {name: _with_data_path(run, config.data_path) for name, run in config.runs.items()}
    return dataclasses.replace(config, runs=runs)


def _with_data_path(run: RunConfig, path: str) -> RunConfig:
    if run.data.path or run.data.source == "scenes":
        return run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, path=path))


def with_task(run: RunConfig, **changes: Any) -> RunConfig:
    """Returns the run with some fields of its task changed."""
    return dataclasses.replace(run, task=dataclasses.replace(run.task, **changes))


def read_section(section: type, values: dict[str, Any], where: str) -> Any:
    """Returns one typed section; `where` is its key, for messages."""
    return _read(section, values, where)


def _read(expected: Any, value: Any, where: str) -> Any:
    """Returns `value` as the annotated type `expected`; `where` is its key, for the message."""
    origin = typing.get_origin(expected)
    if dataclasses.is_dataclass(expected):
        return _read_section(expected, value, where)
    if origin in (typing.Union, types.UnionType):
        return _read_optional(expected, value, where)
    if origin is Literal:
        choices = typing.get_args(expected)
        if value not in choices:
            near = nearest(str(value), choices)
            raise ConfigError(f"{where} = {shown(value)}: must be one of {_listing(choices)}{near}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} = {shown(value)}: must be a tuple, is {_type_name(value)}")
        inner = typing.get_args(expected)[0]
        return tuple(_read(inner, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(
                f"{where} = {shown(value)}: must be a section, is {_type_name(value)}"
            )
        inner = typing.get_args(expected)[1]
        for key in value:
            check_name(key, where)
        return {key: _read(inner, item, f"{where}.{key}") for key, item in value.items()}
    return _read_scalar(expected, value, where)


def _read_section(section: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} = {shown(value)}: must be a section, is {_type_name(value)}")
    if section is TaskConfig:
        section = _task(value.get("kind"), f"{where}.kind")
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise ConfigError(
            f"{where}.{unknown[0]} = {shown(value[unknown[0]])}: unknown key; "
            f"{where} has {_listing(sorted(fields))}{nearest(str(unknown[0]), fields)}"
        )
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is missing; it has no default")
    read = section(
        **{key: _read(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    )
    try:
        check_limits(read, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return read


def _task(kind: Any, where: str) -> type[TaskConfig]:
    """Returns the member of the tagged union that `kind` names."""
    try:
        known = registered()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(kind, str) or kind not in known:
        near = nearest(str(kind), known)
        raise ConfigError(f"{where} = {shown(kind)}: must be one of {_listing(known)}{near}")
    return known[kind]


def _read_optional(expected: Any, value: Any, where: str) -> Any:
    kinds = [kind for kind in typing.get_args(expected) if kind is not type(None)]
    if value is None and len(kinds) < len(typing.get_args(expected)):
        return None
    errors = []
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0]


def _read_scalar(expected: type, value: Any, where: str) -> Any:
    try:
        return read_scalar(expected, value, where)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_name(name: Any, where: str) -> None:
    """Raises ConfigError unless a name of `where` is plain: those of runs are names of folders."""
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ConfigError(
            f"{where} has the name {shown(name)}: must be at most 100 letters, digits, _, - and "
            "., the first of them no - or ."
        )


def _listing(choices: typing.Iterable[Any]) -> str:
    return ", ".join(str(choice) for choice in choices)


def _type_name(value: Any) -> str:
    return type(value).__name__


class Change(typing.NamedTuple):
    """A key in which two nested dicts differ, with both values."""

    key: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.theirs!r} there, {self.ours!r} here"


def changes(ours: Any, theirs: Any, where: str = "config") -> list[Change]:
    """Returns the keys in which two nested dicts differ, in order."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            change
            for key in sorted(set(ours) | set(theirs), key=str)
            for change in changes(ours.get(key), theirs.get(key), f"{where}.{key}")
        ]
    same = (
        ours == theirs
        or (isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)))
        and list(ours) == list(theirs)
    )
    return [] if same else [Change(where, theirs, ours)]


def differences(ours: Any, theirs: Any, where: str = "config") -> list[str]:
    """Returns one line per key in which two nested dicts differ."""
    return [str(change) for change in changes(ours, theirs, where)]

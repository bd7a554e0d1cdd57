"""Checks of a config that depend on several keys, before anything long starts."""

import itertools
from collections.abc import Iterable, Sequence

import jax
from etils import epath

from contextdiff_jax.conditions.requests import check_requests, of_captions
from contextdiff_jax.config import Config, ConfigError, RunConfig
from contextdiff_jax.networks.dot_product_attention import check_implementation
from contextdiff_jax.runs.build import (
    RUN_PREFIX,
    asked_conditions,
    compute_dtype,
    diffusion_runs,
    text_references,
    text_runs,
)
from contextdiff_jax.runs.published import check_model
from contextdiff_jax.system.seeds import check_seed
from contextdiff_jax.system.suggestions import nearest


def validate(
    config: Config, only: str | None = None, *, files: bool = True, platform: str | None = ""
) -> None:
    """Raises ConfigError with one sentence for the first thing that cannot work.

    only: the run that is done; None is the whole pipeline.
    files: whether the encoders' folders must be there; compiling reads none.
    platform: where the networks will run ("cpu", "gpu", "tpu"); "" is here, None nowhere.
    """
    for name in config.pipeline:
        if name not in config.runs:
            raise ConfigError(
                f"config.pipeline names {name!r}: must be one of {', '.join(config.runs)}"
                f"{nearest(name, config.runs)}"
            )
    if only is not None and only not in config.pipeline:
        known = ", ".join(config.pipeline)
        raise ConfigError(f"--run={only}: must be one of {known}{nearest(only, config.pipeline)}")
    check_seed(config.seed, "config.seed")
    check_seed(config.samples.seed, "config.samples.seed")
    for before, name in enumerate(config.pipeline):
        _check_start(config, name, config.pipeline[:before])
        _validate_run(config, config.runs[name], f"config.runs.{name}")
        if platform is not None:
            _check_kernels(config, config.runs[name], f"config.runs.{name}", platform)
    _check_cascade(config)
    for name in [only] if only else config.pipeline:
        if files:
            run = config.runs[name]
            read = run.task.encoders(config.use_adapter)
            check_encoders(config, read, text_stored=bool(run.data.embeddings))
            _check_folders(config, name)


def _check_folders(config: Config, name: str) -> None:
    """What a run reads of folders beside encoders must be there, and fit."""
    run, where = config.runs[name], f"config.runs.{name}.task"
    for folder in run.task.folders():
        if not epath.Path(folder).is_dir():
            raise ConfigError(
                f"{where} reads {folder!r}: no folder there; must be the folder of a first stage"
            )
    try:
        check_model(config, name)
        run.task.check_folders(where, run.data, config.use_adapter)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error


def _check_cascade(config: Config) -> None:
    """Each stage must be trained for what the one before it draws."""
    names = diffusion_runs(config)
    if names and config.samples.prompts and config.runs[names[0]].task.enlarges:
        raise ConfigError(
            f"config.pipeline: {names[0]!r} enlarges pictures of a stage before it, and is first; "
            "must begin with another run, or config.samples.prompts must be empty"
        )
    for before, after in itertools.pairwise(names):
        drawn, run = config.runs[before].data.resolution, config.runs[after]
        key, side = run.task.enlarges or ("", drawn)
        if side != drawn:
            raise ConfigError(
                f"config.runs.{after}.task.{key} = {side}: must be {drawn}, the resolution of "
                f"{before!r}, the stage before it"
            )
    _check_prompts(config, names)
    samples = config.samples
    if samples.batch_size < 1:
        raise ConfigError(f"config.samples.batch_size = {samples.batch_size}: must be at least 1")
    if not 0 <= samples.augmentation <= 1:
        raise ConfigError(
            f"config.samples.augmentation = {samples.augmentation}: must be in [0, 1], 0 is clean"
        )


def _check_prompts(config: Config, stages: list[str]) -> None:
    """What is drawn at the end, and on the way there, must be allowed from the start."""
    drawn = {"config.samples.prompts": (config.samples.prompts, stages)}
    for name in stages:
        prompts = config.runs[name].task.preview_prompts
        drawn[f"config.runs.{name}.task.preview.prompts"] = (prompts, [name])
    for where, (prompts, drawing) in drawn.items():
        conditions = asked_conditions(config, drawing)
        if not prompts or not drawing or conditions is None:
            continue
        try:
            check_requests(of_captions(prompts, conditions), conditions)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error


def _validate_run(config: Config, run: RunConfig, where: str) -> None:
    for key in ("batch_size", "steps", "log_every", "save_every", "checkpoints_kept"):
        if getattr(run, key) < 1:
            raise ConfigError(f"{where}.{key} = {getattr(run, key)}: must be at least 1")
    run.optimizer.validate(f"{where}.optimizer")
    run.data.validate(f"{where}.data")
    if run.data.embeddings and not run.task.reads_text:
        raise ConfigError(
            f"{where}.data.embeddings = {run.data.embeddings!r}: must be empty, task "
            f"{run.task.kind!r} has no frozen text encoder that they stand for"
        )
    if run.data.latents and not run.task.in_latents:
        raise ConfigError(
            f"{where}.data.latents = {run.data.latents!r}: must be empty, task {run.task.kind!r} "
            "does not train in latents"
        )
    run.task.validate(f"{where}.task", run.data, config.use_adapter)
    if run.task.fits_data and run.optimizer.weight_decay:
        raise ConfigError(
            f"{where}.optimizer.weight_decay = {run.optimizer.weight_decay}: must be 0 where "
            f"{where}.task fits statistics to its data, which are saved with the weights"
        )


def _check_start(config: Config, name: str, before: Sequence[str]) -> None:
    """A run starts from one that the pipeline trains before it."""
    start, where = config.runs[name].start_from, f"config.runs.{name}.start_from"
    for key in ("parts", "fresh"):
        if getattr(start, key) and not start.path:
            raise ConfigError(
                f"{where}.{key} = {getattr(start, key)!r}: must be empty where {where}.path is"
            )
    known = [RUN_PREFIX + each for each in before]
    if start.path.startswith(RUN_PREFIX) and start.path not in known:
        raise ConfigError(
            f"{where}.path = {start.path!r}: must be a folder or a run before this one, "
            f"{', '.join(known) or '(there is none)'}{nearest(start.path, known)}"
        )


def _check_kernels(config: Config, run: RunConfig, where: str, platform: str) -> None:
    for section, network in run.task.networks().items():
        chosen = hasattr(network, "attention_implementation")
        if chosen and (section != "adapter" or config.use_adapter):
            check_implementation(
                network.attention_implementation,
                platform or jax.default_backend(),
                compute_dtype(config),
                f"{where}.task.{section}.attention_implementation",
            )


def check_text_run(config: Config, name: str, workdir: str | None) -> None:
    """Raises ConfigError unless the text encoders of run `name` can be found in `workdir`."""
    runs = text_runs(config)
    if name not in runs:
        raise ConfigError(
            f"--run={name}: must be one of {', '.join(runs) or '(none)'}, the runs that read text "
            "encoders"
        )
    own = [r.path for r in text_references(config).values() if r.path.startswith(RUN_PREFIX)]
    if own and not workdir:
        raise ConfigError(f"encoder {own[0]!r} is trained by the pipeline: give its --workdir")


def check_encoders(config: Config, read: Iterable[str], text_stored: bool = False) -> None:
    """Raises ConfigError where an encoder is neither a folder nor a run of the pipeline.

    read: those to check, of "text" and "clip". text_stored: the text encoder's folder may be
    missing, its tokens are stored.
    """
    refs = {key: getattr(config.encoders, key) for key in read}
    training = [n for n, run in config.runs.items() if run.task.encoder_config is not None]
    known = [RUN_PREFIX + name for name in training]
    for key, ref in refs.items():
        where = f"config.encoders.{key}.path = {ref.path!r}"
        if ref.path.startswith(RUN_PREFIX):
            if ref.path not in known:
                raise ConfigError(
                    f"{where}: no such run that trains an encoder; must be a folder or one of "
                    f"{', '.join(known) or '(none)'}"
                )
        elif not epath.Path(ref.path).is_dir() and (key == "clip" or not text_stored):
            raise ConfigError(
                f"{where}: no folder there; must be a Hugging Face folder of {ref.kind} weights "
                f"or one of {', '.join(known) or '(none)'}"
            )

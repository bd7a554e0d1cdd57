"""Checks of a config that depend on several keys, before anything long starts."""

import dataclasses
import itertools

import jax
from etils import epath

from contextdiff_jax.config import Config, ConfigError, RunConfig
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.networks.dot_product_attention import check_implementation
from contextdiff_jax.runs.build import (
    NETWORKS,
    RUN_PREFIX,
    compute_dtype,
    diffusion_runs,
    text_references,
)
from contextdiff_jax.system.seeds import check_seed
from contextdiff_jax.system.suggestions import nearest

_SECTIONS = {
    "contrastive": ("clip", "tokenizer"),
    "text_to_image": ("unet", "adapter", "diffusion", "sampler"),
    "super_resolution": ("efficient_unet", "adapter", "diffusion", "sampler"),
}

_DIAGNOSED_STEPS = 10  # sampling steps of the costlier diagnostics


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
    for name in config.pipeline:
        _validate_run(config, config.runs[name], f"config.runs.{name}")
        if platform is not None:
            _check_kernels(config, config.runs[name], f"config.runs.{name}", platform)
    _check_cascade(config)
    for name in [only] if only else config.pipeline:
        if files and config.runs[name].task != "contrastive":
            check_encoders(config, text_precomputed=bool(config.runs[name].data.embeddings))


def _check_cascade(config: Config) -> None:
    """Each stage must be trained for what the one before it draws."""
    names = diffusion_runs(config)
    if names and config.samples.prompts and config.runs[names[0]].task == "super_resolution":
        raise ConfigError(
            f"config.pipeline: {names[0]!r} has no stage before it whose pictures it enlarges; "
            "must begin with a text_to_image run, or config.samples.prompts be empty"
        )
    for before, after in itertools.pairwise(names):
        drawn, run = config.runs[before].data.resolution, config.runs[after]
        if run.task == "super_resolution" and run.low_resolution != drawn:
            raise ConfigError(
                f"config.runs.{after}.low_resolution = {run.low_resolution}: must be {drawn}, the "
                f"resolution of {before!r}, the stage before it"
            )
    samples = config.samples
    if samples.batch_size < 1:
        raise ConfigError(f"config.samples.batch_size = {samples.batch_size}: must be at least 1")
    if not 0 <= samples.augmentation <= 1:
        raise ConfigError(
            f"config.samples.augmentation = {samples.augmentation}: must be in [0, 1], 0 is clean"
        )


def _validate_run(config: Config, run: RunConfig, where: str) -> None:
    for section in _SECTIONS[run.task]:
        if getattr(run, section) is None and (section != "adapter" or config.use_adapter):
            raise ConfigError(f"{where}.{section} is missing; task {run.task!r} reads it")
    for key in ("batch_size", "steps", "log_every", "save_every", "keep"):
        if getattr(run, key) < 1:
            raise ConfigError(f"{where}.{key} = {getattr(run, key)}: must be at least 1")
    run.optimizer.validate(f"{where}.optimizer")
    run.data.validate(f"{where}.data")
    if run.task == "contrastive":
        run.clip.validate(f"{where}.clip")
        if run.data.embeddings:
            raise ConfigError(
                f"{where}.data.embeddings = {run.data.embeddings!r}: must be empty, a contrastive "
                "run trains its text encoder"
            )
        return
    run.sampler.validate(f"{where}.sampler")
    run.diffusion.validate(f"{where}.diffusion")
    _check_steps(run, where)
    key = "unet" if run.task == "text_to_image" else "efficient_unet"
    network = getattr(run, key)
    for section in [key] + (["adapter"] if config.use_adapter else []):
        getattr(run, section).validate(f"{where}.{section}")
        resolution = f"{where}.data.resolution (for {section})"
        getattr(run, section).check_resolution(run.data.resolution, resolution)
    if key == "efficient_unet" and network.residual and run.diffusion.prediction != "x0":
        raise ConfigError(
            f"{where}.diffusion.prediction = {run.diffusion.prediction!r}: must be 'x0' where "
            f"{where}.efficient_unet.residual is True"
        )
    if run.task == "super_resolution" and run.data.resolution % run.low_resolution:
        raise ConfigError(
            f"{where}.low_resolution = {run.low_resolution}: must divide "
            f"{where}.data.resolution = {run.data.resolution}"
        )
    if not 0 <= run.augmentation <= 1:
        raise ConfigError(f"{where}.augmentation = {run.augmentation}: must be in [0, 1]")


def _check_steps(run: RunConfig, where: str) -> None:
    """Everything that samples must find its times on the run's schedule."""
    schedule = make_schedule(run.diffusion.schedule, run.diffusion.num_steps)
    asked = {"sampler": run.sampler.num_steps}
    if run.preview.every:
        asked["preview"] = run.preview.num_steps
    for section, steps in asked.items():
        try:
            dataclasses.replace(run.sampler, num_steps=steps).timesteps(schedule)
        except ValueError as error:
            raise ConfigError(f"{where}.{section}.num_steps = {steps}: {error}") from error
    if run.diagnose_every and schedule.num_steps < _DIAGNOSED_STEPS:
        raise ConfigError(
            f"{where}.diffusion.num_steps = {schedule.num_steps}: must be at least "
            f"{_DIAGNOSED_STEPS} where {where}.diagnose_every is not 0"
        )


def _check_kernels(config: Config, run: RunConfig, where: str, platform: str) -> None:
    for section in NETWORKS:
        if getattr(run, section) is not None and (section != "adapter" or config.use_adapter):
            check_implementation(
                getattr(run, section).attention_implementation,
                platform or jax.default_backend(),
                compute_dtype(config),
                f"{where}.{section}.attention_implementation",
            )


def check_text_run(config: Config, name: str, workdir: str | None) -> None:
    """Raises ConfigError unless the text encoders of run `name` can be found in `workdir`."""
    runs = diffusion_runs(config)
    if name not in runs:
        raise ConfigError(
            f"--run={name}: must be one of {', '.join(runs) or '(none)'}, the runs that read text "
            "encoders"
        )
    own = [r.path for r in text_references(config).values() if r.path.startswith(RUN_PREFIX)]
    if own and not workdir:
        raise ConfigError(f"encoder {own[0]!r} is trained by the pipeline: give its --workdir")


def check_encoders(config: Config, text_precomputed: bool = False) -> None:
    """Raises ConfigError where an encoder is neither a folder nor a run of the pipeline.

    text_precomputed: the text encoder's folder may be missing, its tokens are stored.
    """
    refs = {"text": config.encoders.text}
    if config.use_adapter:
        refs["clip"] = config.encoders.clip
    known = [RUN_PREFIX + n for n, run in config.runs.items() if run.task == "contrastive"]
    for key, ref in refs.items():
        where = f"config.encoders.{key}.path = {ref.path!r}"
        if ref.path.startswith(RUN_PREFIX):
            if ref.path not in known:
                raise ConfigError(
                    f"{where}: no such contrastive run; must be a folder or one of "
                    f"{', '.join(known) or '(none)'}"
                )
        elif not epath.Path(ref.path).is_dir() and (key == "clip" or not text_precomputed):
            raise ConfigError(
                f"{where}: no folder there; must be a Hugging Face folder of {ref.kind} weights "
                f"or one of {', '.join(known) or '(none)'}"
            )

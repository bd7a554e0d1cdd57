"""Checks of a config that depend on several keys, before anything long starts."""

import jax
from etils import epath

from contextdiff_jax.config import Config, ConfigError, RunConfig, differences
from contextdiff_jax.networks.dot_product_attention import check_implementation
from contextdiff_jax.pipeline.build import (
    NETWORKS,
    RUN_PREFIX,
    compute_dtype,
    diffusion_runs,
    text_references,
)

_SECTIONS = {
    "contrastive": ("clip", "tokenizer"),
    "text_to_image": ("unet", "adapter", "diffusion", "sampler"),
    "super_resolution": ("efficient_unet", "adapter", "diffusion", "sampler"),
}

# Keys of a run that may change between a checkpoint and its resumption: they change what is
# written and how fast, or how long the run goes on, not what the next step computes.
_FREE = {"steps", "log_every", "save_every", "keep", "preview", "diagnose_every", "sampler"}
# Of embeddings, what they hold is compared, by their metadata, not where they lie.
_FREE_DATA = {"threads", "cache_dir", "embeddings"}
_FREE_NETWORK = {"attention_implementation"}


def validate(config: Config, files: bool = True) -> None:
    """Raises ConfigError with one sentence for the first thing that cannot work.

    files: whether the encoders' folders must be there; compiling reads none.
    """
    for name in config.pipeline:
        if name not in config.runs:
            raise ConfigError(
                f"config.pipeline names {name!r}: must be one of {', '.join(config.runs)}"
            )
    for name in config.pipeline:
        _validate_run(config, config.runs[name], f"config.runs.{name}")
        if files and config.runs[name].task != "contrastive":
            check_encoders(config, text_precomputed=bool(config.runs[name].data.embeddings))


def _validate_run(config: Config, run: RunConfig, where: str) -> None:
    for section in _SECTIONS[run.task]:
        if getattr(run, section) is None and (section != "adapter" or config.use_adapter):
            raise ConfigError(f"{where}.{section} is missing; task {run.task!r} reads it")
    for key in ("batch_size", "steps", "log_every", "save_every", "keep"):
        if getattr(run, key) < 1:
            raise ConfigError(f"{where}.{key} = {getattr(run, key)}: must be at least 1")
    if run.optimizer.accumulation < 1:
        raise ConfigError(
            f"{where}.optimizer.accumulation = {run.optimizer.accumulation}: must be at least 1"
        )
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
    if run.diffusion.objective == "bound" and run.diffusion.loss_weight != "x0":
        raise ConfigError(
            f"{where}.diffusion.loss_weight = {run.diffusion.loss_weight!r}: must be 'x0', the "
            "default, objective 'bound' does not read it"
        )
    key = "unet" if run.task == "text_to_image" else "efficient_unet"
    network = getattr(run, key)
    for section in [key] + (["adapter"] if config.use_adapter else []):
        getattr(run, section).validate(f"{where}.{section}")
        resolution = f"{where}.data.resolution (for {section})"
        getattr(run, section).check_resolution(run.data.resolution, resolution)
        check_implementation(
            getattr(run, section).attention_implementation,
            jax.default_backend(),
            compute_dtype(config),
            f"{where}.{section}.attention_implementation",
        )
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


def check_same_run(saved: dict, current: dict, name: str) -> None:
    """Raises ConfigError naming the keys in which a checkpoint's config differs from today's.

    Only what changes the numbers counts: the run's own section, seed, dtype, use_adapter and the
    encoders' identity.
    """
    lines = differences(_decisive(current, name), _decisive(saved, name))
    if lines:
        raise ConfigError(
            f"the checkpoint of run {name!r} was made by another config: {'; '.join(lines[:8])}"
            + (f"; and {len(lines) - 8} more" if len(lines) > 8 else "")
            + "; use another --workdir, or give back the old values"
        )


def _decisive(metadata: dict, name: str) -> dict:
    config = metadata["config"]
    run = {key: value for key, value in config["runs"][name].items() if key not in _FREE}
    run["data"] = {key: value for key, value in run["data"].items() if key not in _FREE_DATA}
    for section in NETWORKS:
        if run[section] is not None:
            network = run[section].items()
            run[section] = {key: value for key, value in network if key not in _FREE_NETWORK}
    kept = {key: config[key] for key in ("seed", "dtype", "use_adapter")}
    recorded = {key: metadata[key] for key in ("encoders", "data")}
    return kept | recorded | {"runs": {name: run}}

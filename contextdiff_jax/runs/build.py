"""From the config to what runs: tasks with their encoders, data sources, loop settings.

Only the entry points use this module; it is where the parts of the project meet.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

import contextdiff_jax
from contextdiff_jax.config import Config, EncoderRef, RunConfig
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.example import Source
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import sample_captions
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.encoders.clip import CLIP
from contextdiff_jax.encoders.frozen import TextEncoder, load_text_encoder
from contextdiff_jax.encoders.tokenizers import Tokenizer, load_tokenizer, train_tokenizer
from contextdiff_jax.encoders.weights import folder_identity, load_clip
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.efficient_unet import EfficientUNet
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.parallel import distributed
from contextdiff_jax.tasks.conditioning import Conditioning, ImageEncoder, Precomputed
from contextdiff_jax.tasks.contrastive import ContrastiveTask
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.super_resolution import SuperResolutionTask
from contextdiff_jax.training.loop import LoopSettings
from contextdiff_jax.training.task import Task

NETWORKS = ("unet", "efficient_unet", "adapter")  # sections of a run
RUN_PREFIX = "run:"
ENCODER_FOLDER = "encoder"  # inside a finished contrastive run
ENCODER_MARK = "finished"  # inside that, once all of it is there
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)

_PREVIEWED = 16  # pictures, where the first data is shown

Locate = Callable[[EncoderRef], epath.Path]


def diffusion_runs(config: Config) -> list[str]:
    """Returns the pipeline's diffusion runs in order: the stages of its cascade."""
    return [name for name in config.pipeline if config.runs[name].task != "contrastive"]


def compute_dtype(config: Config) -> jnp.dtype:
    """Returns the dtype of matmuls and convolutions; "auto" follows the platform."""
    if config.dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.dtype)


def locate_in(workdir: epath.PathLike) -> Locate:
    """Returns a function from an encoder reference to its folder, for runs under `workdir`."""

    def locate(ref: EncoderRef) -> epath.Path:
        if ref.path.startswith(RUN_PREFIX):
            return epath.Path(workdir) / ref.path.removeprefix(RUN_PREFIX) / ENCODER_FOLDER
        return epath.Path(ref.path)

    return locate


def text_references(config: Config) -> dict[str, EncoderRef]:
    """Returns the text encoders a diffusion run reads: "text", and "clip" if it is another one."""
    references = {"text": config.encoders.text}
    if config.use_adapter and config.encoders.clip != config.encoders.text:
        references["clip"] = config.encoders.clip
    return references


def load_text_encoders(config: Config, locate: Locate) -> dict[str, TextEncoder]:
    """Loads the encoders of `text_references`."""
    dtype = compute_dtype(config)
    return {
        name: load_text_encoder(
            ref.kind, locate(ref), dtype, param_dtype=dtype, max_length=ref.max_length
        )
        for name, ref in text_references(config).items()
    }


def build_conditioning(
    config: Config, locate: Locate, embeddings: Embeddings | None = None
) -> Conditioning:
    """Loads the frozen encoders that a diffusion run reads; shares what is the same.

    With embeddings no text encoder is loaded: their tokens come with the batches.
    """
    if embeddings is None:
        texts = load_text_encoders(config, locate)
    else:
        stored = embeddings.metadata.encoders
        texts = {
            name: Precomputed(stored[name].identity, stored[name].width, stored[name].max_length)
            for name in embeddings.names
        }
    if not config.use_adapter:
        return Conditioning(texts["text"])
    folder = locate(config.encoders.clip)
    clip_config, params = load_clip(folder)
    vision = {key: params[key] for key in ("vision_model", "visual_projection", "logit_scale")}
    module = CLIP(clip_config, dtype=compute_dtype(config))
    image = ImageEncoder(module, vision, folder_identity(folder))
    return Conditioning(texts["text"], texts.get("clip", texts["text"]), image)


def build_diffusion_task(
    config: Config, run: RunConfig, locate: Locate, embeddings: Embeddings | None = None
) -> DiffusionTask:
    """Returns the task of a text_to_image or super_resolution run, its encoders loaded."""
    return diffusion_task(config, run, build_conditioning(config, locate, embeddings))


def diffusion_task(config: Config, run: RunConfig, conditioning: Conditioning) -> DiffusionTask:
    """Returns the task of a text_to_image or super_resolution run with these encoders."""
    dtype = compute_dtype(config)
    _check_widths(run, conditioning)
    shared = {
        "config": run.diffusion,
        "schedule": make_schedule(run.diffusion.schedule, run.diffusion.num_steps),
        "adapter": Adapter(run.adapter, dtype=dtype) if config.use_adapter else None,
        "conditioning": conditioning,
        "sampler": run.sampler,
        "resolution": run.data.resolution,
        "preview_sampler": dataclasses.replace(run.sampler, num_steps=run.preview.num_steps),
    }
    if run.task == "text_to_image":
        return DiffusionTask(denoiser=UNet(run.unet, dtype=dtype), **shared)
    return SuperResolutionTask(
        denoiser=EfficientUNet(run.efficient_unet, dtype=dtype),
        low_resolution=run.low_resolution,
        augmentation=run.augmentation,
        **shared,
    )


def _check_widths(run: RunConfig, conditioning: Conditioning) -> None:
    """Raises ValueError where a network is configured for tokens of another width."""
    section = "unet" if run.task == "text_to_image" else "efficient_unet"
    pairs = [(section, "text_dim", conditioning.text.width)]
    if conditioning.clip_text is not None and conditioning.clip_image is not None:
        pairs.append(("adapter", "text_dim", conditioning.clip_text.width))
        pairs.append(("adapter", "image_dim", conditioning.clip_image.width))
    for section, key, width in pairs:
        configured = getattr(getattr(run, section), key)
        if configured != width:
            raise ValueError(
                f"{section}.{key} = {configured}: must be {width}, as wide as its encoder's tokens"
            )


def build_contrastive_task(
    config: Config, run: RunConfig, source: Source, folder: epath.Path
) -> ContrastiveTask:
    """Returns the task of a contrastive run; its tokenizer is made in `folder` if it must be."""
    tokenizer = _tokenizer(run, source, folder / "tokenizer", config.seed)
    clip = dataclasses.replace(
        run.clip, vocab_size=tokenizer.vocab_size, eot_token_id=tokenizer.eot_token_id
    )
    return ContrastiveTask(CLIP(clip, dtype=compute_dtype(config)), tokenizer, run.data.resolution)


def _tokenizer(run: RunConfig, source: Source, folder: epath.Path, seed: int) -> Tokenizer:
    settings, length = run.tokenizer, run.clip.max_length
    if settings.path:
        return load_tokenizer(settings.path, length)
    if distributed.is_main() and not (folder / "tokenizer.json").exists():
        captions = sample_captions(source, settings.sample, seed)
        train_tokenizer(captions, settings.vocab_size, length, folder)
    distributed.wait_for_all("tokenizer")
    return load_tokenizer(folder, length)


def copy_tokenizer(run: RunConfig, directory: epath.Path) -> None:
    """Puts the tokenizer of a contrastive run beside its encoder, so that one folder holds both.

    Marks the folder as finished.
    """
    source = epath.Path(run.tokenizer.path) if run.tokenizer.path else directory / "tokenizer"
    encoder = directory / ENCODER_FOLDER
    (encoder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            (source / name).copy(encoder / "tokenizer" / name, overwrite=True)
    (encoder / ENCODER_MARK).write_text("")


def with_preview(
    task: Task, run: RunConfig, source: Source, seed: int, embeddings: Embeddings | None = None
) -> Task:
    """Returns the task with what its sample grids show: the preview prompts, or the first data.

    Super-resolution needs pictures to start from, so it always shows the first data.
    """
    if not run.preview.every or not isinstance(task, DiffusionTask):
        return task
    tokenize = task.conditioning.tokenize
    if run.preview.prompts and not isinstance(task, SuperResolutionTask):
        arrays = tokenize if embeddings is None else embeddings.prompts
        return dataclasses.replace(task, preview_batch=arrays(run.preview.prompts))
    batches = make_batches(
        source,
        run.data,
        _PREVIEWED,
        seed=seed,
        tokenize=tokenize if embeddings is None else None,
        embeddings=embeddings,
    )
    batch = next(iter(batches))
    batches.close()
    return dataclasses.replace(task, preview_batch=batch)


def loop_settings(config: Config, run: RunConfig) -> LoopSettings:
    """Returns what the training loop reads of the config."""
    return LoopSettings(
        steps=run.steps,
        batch_size=run.batch_size,
        optimizer=run.optimizer,
        seed=config.seed,
        log_every=run.log_every,
        save_every=run.save_every,
        keep=run.keep,
        preview_every=run.preview.every,
        diagnose_every=run.diagnose_every,
    )


def checkpoint_metadata(
    config: Config, name: str, task: Task, source: Source, embeddings: Embeddings | None = None
) -> dict[str, Any]:
    """Returns what a checkpoint records beside the state: config, data, encoders, versions."""
    # Rounded tokens train to other bits: the dtype decides, where they lie does not.
    stored = {} if embeddings is None else {"embeddings": embeddings.metadata.dtype}
    encoders = task.conditioning.identities() if isinstance(task, DiffusionTask) else {}
    return {
        "run": name,
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "encoders": encoders,
        "data": {"samples": len(source), **stored},
        "versions": {"contextdiff_jax": contextdiff_jax.__version__, "jax": jax.__version__},
    }

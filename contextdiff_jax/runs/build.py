"""From the config to what runs: encoders, tasks, loop settings.

It is where the parts of the project meet.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

import contextdiff_jax
from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.config import Config, EncoderRef, RunConfig
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.example import Source
from contextdiff_jax.data.latents import LatentSource
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.encoders.frozen import (
    FrozenStage,
    ImageEncoder,
    StoredTokens,
    TextEncoder,
    load_frozen_stage,
    load_image_encoder,
    load_text_encoder,
)
from contextdiff_jax.tasks.contrastive import ENCODER_FOLDER
from contextdiff_jax.tasks.task_config import Encoders, Parts
from contextdiff_jax.training.loop import LoopSettings
from contextdiff_jax.training.task import Task

RUN_PREFIX = "run:"

_PREVIEWED = 16  # pictures, where the first data is shown

Locate = Callable[[EncoderRef], epath.Path]


def diffusion_runs(config: Config) -> list[str]:
    """Returns the pipeline's runs that draw, in order: the stages of its cascade."""
    return [name for name in config.pipeline if config.runs[name].task.draws]


def asked_conditions(
    config: Config, stages: Iterable[str]
) -> list[Condition | type[Condition]] | None:
    """Returns the conditions of the pictures of these runs, None where a task does not say them."""
    found = [config.runs[name].task.conditions for name in stages]
    return None if None in found else [condition for each in found for condition in each]


def text_runs(config: Config) -> list[str]:
    """Returns the pipeline's runs that read text encoders, in order."""
    return [name for name in config.pipeline if config.runs[name].task.reads_text]


def compute_dtype(config: Config) -> jnp.dtype:
    """Returns the dtype of matmuls and convolutions; "auto" follows the platform."""
    return named_dtype(config.dtype)


def named_dtype(name: str) -> jnp.dtype:
    """Returns the dtype of that name; "auto" is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(name)


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


class NamedEncoders:
    """The encoders that a config names, each made when it is first asked for, and once."""

    def __init__(self, config: Config):
        self._config = config
        self._made: dict[str, Any] = {}

    def text(self) -> TextEncoder | StoredTokens:
        """Returns what encodes text for denoisers."""
        return self._once("text", self._make_text)

    def clip_text(self) -> TextEncoder | StoredTokens:
        """Returns what encodes text for adapters."""
        own = "clip" in text_references(self._config)
        return self._once("clip" if own else "text", self._make_text)

    def clip_image(self) -> ImageEncoder:
        """Returns what encodes pictures for adapters."""
        return self._once("image", lambda _: self._make_image())

    def first_stage(self, path: str) -> FrozenStage:
        """Returns the first stage of a folder."""
        return self._once(f"first stage {path}", lambda _: self._make_stage(path))

    def _once(self, name: str, make: Callable[[str], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make(name)
        return self._made[name]

    def _make_text(self, name: str) -> TextEncoder | StoredTokens:
        """Returns the encoder of this name in `text_references`."""
        raise NotImplementedError

    def _make_image(self) -> ImageEncoder:
        raise NotImplementedError

    def _make_stage(self, path: str) -> FrozenStage:
        raise NotImplementedError


class LoadedEncoders(NamedEncoders):
    """The encoders with their weights; with embeddings no text encoder is loaded.

    embeddings: tokens that come with the batches.
    """

    def __init__(self, config: Config, locate: Locate, embeddings: Embeddings | None = None):
        super().__init__(config)
        self._locate, self._embeddings = locate, embeddings
        self._dtype = compute_dtype(config)

    def _make_image(self) -> ImageEncoder:
        return load_image_encoder(self._locate(self._config.encoders.clip), self._dtype)

    def _make_stage(self, path: str) -> FrozenStage:
        return load_frozen_stage(self._locate(EncoderRef(path=path)), self._dtype)

    def _make_text(self, name: str) -> TextEncoder | StoredTokens:
        if self._embeddings is not None:
            stored = self._embeddings.metadata.encoders[name]
            return StoredTokens(stored.identity, stored.width, stored.max_length)
        ref, dtype = text_references(self._config)[name], self._dtype
        return load_text_encoder(
            ref.kind, self._locate(ref), dtype, param_dtype=dtype, max_length=ref.max_length
        )


def load_text_encoders(config: Config, locate: Locate) -> dict[str, TextEncoder]:
    """Loads the encoders of `text_references`."""
    encoders = LoadedEncoders(config, locate)
    made = {"text": encoders.text, "clip": encoders.clip_text}
    return {name: made[name]() for name in text_references(config)}


def build_task(
    config: Config,
    name: str,
    encoders: Encoders,
    source: Source | None = None,
    folder: epath.Path | None = None,
) -> Task:
    """Returns the task of run `name`; source, folder: its data and its folder, to train it."""
    run = config.runs[name]
    return run.task.build(
        Parts(
            data=run.data,
            dtype=compute_dtype(config),
            use_adapter=config.use_adapter,
            encoders=encoders,
            where=f"config.runs.{name}",
            seed=config.seed,
            source=source,
            folder=folder,
        )
    )


def with_preview(
    task: Task, run: RunConfig, source: Source, seed: int, embeddings: Embeddings | None = None
) -> Task:
    """Returns the task with what its sample grids show: the preview prompts, or the first data.

    Where a condition is made of the picture itself, it is always the first data.
    """
    if not run.task.preview_every:
        return task
    if run.task.preview_prompts and not task.of_picture:
        arrays = task.collate if embeddings is None else embeddings.prompts
        return dataclasses.replace(task, preview_batch=arrays(run.task.preview_prompts))
    batches = make_batches(
        source,
        run.data,
        _PREVIEWED,
        seed=seed,
        tokenize=task.collate if embeddings is None else None,
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
        checkpoints_kept=run.checkpoints_kept,
        preview_every=run.task.preview_every,
        diagnose_every=run.task.diagnosed_every,
    )


def checkpoint_metadata(
    config: Config, name: str, task: Task, source: Source, embeddings: Embeddings | None = None
) -> dict[str, Any]:
    """Returns what a checkpoint records beside the state: config, data, encoders, versions."""
    # Rounded tokens train to other bits: the dtype decides, where they lie does not.
    stored = {} if embeddings is None else {"embeddings": embeddings.metadata.dtype}
    if isinstance(source, LatentSource):
        stored["latents"] = source.dtype
    return {
        "run": name,
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "encoders": task.identities(),
        "data": {"samples": len(source), **stored},
        "versions": {"contextdiff_jax": contextdiff_jax.__version__, "jax": jax.__version__},
    }

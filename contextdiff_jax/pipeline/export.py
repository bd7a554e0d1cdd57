"""Sampling checkpoints: a finished pipeline's EMA weights with all that sampling must know.

    EXPORT/export.json        format, config, steps, identities of encoders, versions, dtype
    EXPORT/STAGE/             Orbax tree: denoiser, adapter
    EXPORT/encoders/NAME/     the pipeline's own encoders (Hugging Face folder with tokenizer)

Encoders that came from outside (config.encoders.*.path) stay where they are unless copied; their
identity is recorded and checked when the export is read.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.config import Config, EncoderRef, from_config_dict
from contextdiff_jax.parallel import distributed
from contextdiff_jax.pipeline.build import RUN_PREFIX, Locate, diffusion_runs, locate_in
from contextdiff_jax.training.checkpoints import (
    CheckpointError,
    load_tree,
    newest_ema,
    newest_metadata,
    save_tree,
)

_FORMAT = 1
DTYPES = ("float32", "bfloat16")


def export_pipeline(
    config: Config,
    workdir: epath.PathLike,
    output: epath.PathLike,
    dtype: str = "float32",
    copy_encoders: bool = False,
) -> None:
    """Writes the newest EMA weights of every diffusion run of the pipeline to `output`.

    Raises CheckpointError naming the run that has no checkpoint yet.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
    workdir, output = epath.Path(workdir), epath.Path(output)
    stages = {}
    metadata: dict[str, Any] = {}
    for name in diffusion_runs(config):
        weights, metadata = newest_ema(workdir / name / "checkpoints")
        save_tree(output / name, jax.tree.map(lambda w: np.asarray(w, jnp.dtype(dtype)), weights))
        stages[name] = {"step": metadata["step"], "encoders": metadata["encoders"]}
    if distributed.is_main():
        _copy_encoders(config, workdir, output, copy_encoders)
        _describe(output, dtype, stages, metadata)
    distributed.wait_for_all("export")
    logging.info("exported %s to %s", ", ".join(stages), output)


def _describe(
    output: epath.Path, dtype: str, stages: dict[str, Any], metadata: dict[str, Any]
) -> None:
    content = {
        "format": _FORMAT,
        "dtype": dtype,
        "stages": stages,
        "config": metadata["config"],
        "versions": metadata["versions"],
    }
    (output / "export.json").write_text(json.dumps(content, indent=2))


def trained_config(workdir: epath.PathLike) -> Config:
    """Returns the config recorded in the newest checkpoint of any diffusion run in `workdir`."""
    for folder in sorted(epath.Path(workdir).glob("*/checkpoints")):
        metadata = newest_metadata(folder)
        if metadata is not None:
            return from_config_dict(metadata["config"])
    raise CheckpointError(f"{workdir} holds no run with a finished checkpoint")


def _references(config: Config) -> list[EncoderRef]:
    refs = [config.encoders.text] + ([config.encoders.clip] if config.use_adapter else [])
    return list(dict.fromkeys(refs))


def _encoder_folder(output: epath.Path, ref: EncoderRef) -> epath.Path:
    return output / "encoders" / ref.path.removeprefix(RUN_PREFIX).strip("/").replace("/", "_")


def _copy_encoders(config: Config, workdir: epath.Path, output: epath.Path, copy_all: bool) -> None:
    for ref in _references(config):
        if not copy_all and not ref.path.startswith(RUN_PREFIX):
            continue
        _copy_folder(locate_in(workdir)(ref), _encoder_folder(output, ref))


def _copy_folder(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        if item.is_dir():
            _copy_folder(item, target / item.name)
        else:
            item.copy(target / item.name, overwrite=True)


def read_export(folder: epath.PathLike) -> tuple[dict[str, Any], Locate]:
    """Returns the content of export.json and a function that finds its encoders.

    Raises CheckpointError when the folder is no export of a format this version reads.
    """
    folder = epath.Path(folder)
    file = folder / "export.json"
    if not file.exists():
        raise CheckpointError(
            f"{folder} is not an export: export.json is missing; "
            "make one with python -m contextdiff_jax.export"
        )
    content = json.loads(file.read_text())
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{file} has format {content.get('format')!r}; this version reads {_FORMAT}"
        )

    def locate(ref: EncoderRef) -> epath.Path:
        inside = _encoder_folder(folder, ref)
        return inside if inside.exists() else epath.Path(ref.path)

    return content, locate


def load_stage(folder: epath.PathLike, name: str) -> Any:
    """Returns the weights of one stage as float32 host arrays."""
    return jax.tree.map(lambda w: np.asarray(w, np.float32), load_tree(epath.Path(folder) / name))

"""A latent run's EMA weights as a folder of Stable Diffusion that diffusers loads.

    FOLDER/model_index.json
    FOLDER/unet/, vae/, text_encoder/, tokenizer/, scheduler/
    FOLDER/lora/pytorch_lora_weights.safetensors    the updates alone, where the run trained some
    FOLDER/README.md                                the model card

Updates of low rank are in unet/ already; the file beside is for the model that the run began with.
"""

import json
import pathlib
from typing import Any

from absl import logging
from etils import epath

from contextdiff_jax.config import Config, EncoderRef
from contextdiff_jax.encoders.frozen import tokenizer_folder
from contextdiff_jax.encoders.latent_weights import (
    load_first_stage,
    save_first_stage_folder,
    save_unet_folder,
)
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.lora_weights import FILE as LORA_FILE
from contextdiff_jax.encoders.lora_weights import save_lora
from contextdiff_jax.encoders.tokenizer_files import tokenizer_files
from contextdiff_jax.encoders.weights import load_clip_text, save_clip_text_folder
from contextdiff_jax.networks.latent_config import AutoencoderConfig
from contextdiff_jax.networks.lora import with_lora
from contextdiff_jax.parallel import distributed
from contextdiff_jax.runs.build import diffusion_runs, locate_in
from contextdiff_jax.runs.model_card import Trained, write_card
from contextdiff_jax.runs.published import INDEX
from contextdiff_jax.runs.scheduler_config import FILE as SCHEDULER_FILE
from contextdiff_jax.runs.scheduler_config import scheduler_json
from contextdiff_jax.runs.weights import whole_ema
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.training.checkpoints import newest_metadata, no_checkpoint

TOKENIZER = "tokenizer"


def export_diffusers(config: Config, workdir: epath.PathLike, output: epath.PathLike) -> None:
    """Writes the newest EMA weights of the pipeline's one latent run to the folder `output`.

    Raises ValueError where diffusers has no pipeline for what the run trained, or the run has no
    checkpoint yet.
    """
    workdir, output = epath.Path(workdir), epath.Path(output)
    name = _checked_run(config)
    run, locate = config.runs[name], locate_in(workdir)
    stage_folder = locate(EncoderRef(path=run.task.first_stage.path))
    stage, stage_params = load_first_stage(stage_folder)
    if not isinstance(stage, AutoencoderConfig) or stage.kind != "kl":
        raise ValueError(
            f"first stage {str(stage_folder)!r}: must be an AutoencoderKL, the one that diffusers' "
            "StableDiffusionPipeline takes"
        )
    scheduler = scheduler_json(run.task.diffusion, run.task.sampler)
    if newest_metadata(workdir / name / "checkpoints") is None:
        raise no_checkpoint(workdir / name / "checkpoints")
    weights, metadata = whole_ema(workdir / name)
    if not distributed.is_main():
        return
    text_folder = locate(config.encoders.text)
    tokenizer = tokenizer_folder(text_folder)
    (output / INDEX).unlink(missing_ok=True)  # it comes back when the rest is whole
    _write_unet(output, run.task, weights)
    save_first_stage_folder(output / "vae", stage, stage_params)
    save_clip_text_folder(output / "text_encoder", *load_clip_text(text_folder))
    for file in tokenizer_files(local_folder(tokenizer)):
        _write(output / TOKENIZER / file.name, file.read_bytes())
    _write(output / "scheduler" / SCHEDULER_FILE, _json(scheduler))
    write_card(output, Trained(config, {name: metadata}, workdir), "diffusers")
    index = _index(run.task.pipeline, scheduler["_class_name"], _tokenizer_class(tokenizer))
    _write(output / INDEX, _json(index))
    logging.info("exported %s to %s, in diffusers' layout", name, output)


def _checked_run(config: Config) -> str:
    """Returns the run to export; ValueError where diffusers has nothing like it."""
    names = diffusion_runs(config)
    tasks = [config.runs[name].task for name in names]
    if len(names) != 1 or tasks[0].pipeline is None:
        kinds = ", ".join(f"{n} ({t.kind})" for n, t in zip(names, tasks, strict=True))
        raise ValueError(
            f"--format=diffusers: the pipeline's drawing runs are {kinds}: must be one run of task "
            "latent_text_to_image"
        )
    where = f"config.runs.{names[0]}.task"
    if config.use_adapter:
        raise ValueError(
            "--format=diffusers: config.use_adapter = True: diffusers has no context-aware "
            "adapter; must be an export of a run without, or --format=contextdiff"
        )
    if tasks[0].first_stage.normalization is not None:
        raise ValueError(
            f"--format=diffusers: {where}.first_stage.mean is set: must be (), diffusers "
            "multiplies latents by one factor"
        )
    if config.encoders.text.kind != "clip":
        raise ValueError(
            f"--format=diffusers: config.encoders.text.kind = {config.encoders.text.kind!r}: must "
            "be 'clip', the text encoder of StableDiffusionPipeline"
        )
    return names[0]


def _write_unet(output: epath.Path, task: Any, weights: Any) -> None:
    denoiser = weights["denoiser"]
    if task.lora is not None:
        updates, scale = weights["lora"], task.lora.scale
        save_lora(output / "lora" / LORA_FILE, task.latent_unet, updates, scale)
        denoiser = with_lora(denoiser, updates, scale)
    save_unet_folder(output / "unet", task.latent_unet, denoiser)


def _index(pipeline: str, scheduler: str, tokenizer: str) -> dict[str, Any]:
    return {
        "_class_name": pipeline,
        "_diffusers_version": "0.6.0",  # the first that has these parts
        "requires_safety_checker": False,
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", tokenizer],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _tokenizer_class(folder: pathlib.PurePath) -> str:
    own = (epath.Path(folder) / "merges.txt").exists()
    return "CLIPTokenizer" if own else "PreTrainedTokenizerFast"


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _write(path: epath.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write_bytes(content)

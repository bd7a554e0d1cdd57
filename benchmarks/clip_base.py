"""A small image model of rendered scenes, shaped as Stable Diffusion, for edits of rendered clips.

Its first stage hands pixels through, so that what an edit changes is not a first stage's doing; its
text encoder is a CLIP trained on the same scenes.
"""

import dataclasses
import math

import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from benchmarks.configuration import load_config
from contextdiff_jax.config import Config, RunConfig
from contextdiff_jax.encoders.diffusers_names import tiny_table
from contextdiff_jax.encoders.latent_weights import abstract_first_stage
from contextdiff_jax.encoders.name_map import from_params
from contextdiff_jax.encoders.tensor_files import write_folder
from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.networks.latent_config import LatentUNetConfig, TinyAutoencoderConfig
from contextdiff_jax.runs.build import locate_in
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.train import train_run
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImageConfig
from contextdiff_jax.training.optimizer import OptimizerConfig

BASE, CLIP = "base", "clip"
STAGE = "pixels"  # folder of the first stage
_CHANNELS = {16: (24, 48), 32: (24, 48, 72)}
_BOUND = 3.0  # of the tiny first stage's decoder: 3 tanh(x / 3)
_SIZES = TinyAutoencoderConfig(latent_channels=3, width=4, encoder_blocks=(1,), decoder_blocks=(1,))


def write_pixel_stage(folder: epath.Path) -> None:
    """Writes a first stage whose latents are the pixels in [-1, 1]; it errs by one grey level."""
    abstract = abstract_first_stage(_SIZES)
    flat = traverse_util.flatten_dict(nn.unbox(abstract), sep="/")
    arrays = {name: np.zeros(leaf.shape, np.float32) for name, leaf in flat.items()}
    shrunk = _BOUND * math.tanh(1 / _BOUND)  # what its bound makes of 1
    encoder, decoder = (
        sorted({n.split("/")[1] for n in arrays if n.startswith(half)}, key=_number)
        for half in ("encoder", "decoder")
    )
    for half, (first, *_, last), entering, leaving in (
        ("encoder", encoder, (1.0, 0.0), (2.0, -1.0)),  # of pixels in 0..1
        ("decoder", decoder, (1.0, 1.0), (0.5 / shrunk, 0.5 - 0.5 / shrunk)),
    ):
        for layer, (factor, offset) in ((first, entering), (last, leaving)):
            kernel = arrays[f"{half}/{layer}/kernel"]
            for channel in range(3):
                kernel[1, 1, channel, channel] = factor
            arrays[f"{half}/{layer}/bias"][:] = offset
    tensors = from_params(
        tiny_table(abstract), abstract, traverse_util.unflatten_dict(arrays, sep="/")
    )
    description = {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 3,
        "num_encoder_blocks": [1],
        "num_decoder_blocks": [1],
        "encoder_block_out_channels": [4],
        "decoder_block_out_channels": [4],
    }
    write_folder(folder, description, tensors, "diffusion_pytorch_model")


def _number(layer: str) -> int:
    return int(layer.rpartition("_")[2])


def base_config(folder: epath.Path, seed: int, side: int, steps: int) -> Config:
    """Returns the config of CLIP and base; folder: of the first stage."""
    quickstart = load_config("quickstart")
    clip, own = quickstart.runs[CLIP], quickstart.runs[BASE]
    width, channels = clip.task.clip.text_width, _CHANNELS[side]
    levels = tuple(range(len(channels)))
    base = RunConfig(
        task=LatentTextToImageConfig(
            latent_unet=LatentUNetConfig(
                image_channels=3,
                channels=channels,
                num_blocks=1,
                attention_levels=levels,
                heads=tuple(each // 12 for each in channels),
                groups=8,
                context_dim=width,
                sample_size=side,
            ),
            first_stage=FirstStageRef(str(folder)),
            diffusion=DiffusionConfig(prediction="v", loss_weight="min_snr_5_plus_1"),
            sampler=sampler(25, 3.0),
            preview=PreviewConfig(every=0, prompts=("a red circle",), num_steps=2),
        ),
        data=dataclasses.replace(own.data, resolution=side),
        batch_size=16,
        steps=steps,
        optimizer=OptimizerConfig(
            learning_rate=2e-3, warmup_steps=100, decay="cosine", ema_decay=0.995
        ),
        log_every=100,
        save_every=250,
    )
    return dataclasses.replace(
        quickstart,
        name="clip_base",
        seed=seed,
        use_adapter=False,
        pipeline=(CLIP, BASE),
        runs={CLIP: clip, BASE: base},
        samples=dataclasses.replace(quickstart.samples, batch_size=8),
    )


def sampler(num_steps: int, guidance_scale: float) -> SamplerConfig:
    """DDIM that inversion can be run against."""
    return SamplerConfig(
        name="ddim", num_steps=num_steps, guidance_scale=guidance_scale, threshold="none"
    )


def trained_base(folder: epath.Path, seed: int, side: int, steps: int) -> tuple[Stage, epath.Path]:
    """Trains CLIP and base, or goes on with that; returns the stage and CLIP's folder."""
    stage_folder = folder / STAGE
    if not (stage_folder / "config.json").exists():
        write_pixel_stage(stage_folder)
    return trained(base_config(stage_folder, seed, side, steps), folder)


def trained(config: Config, folder: epath.Path) -> tuple[Stage, epath.Path]:
    """Trains CLIP and base of a config, or goes on; returns the stage and the folder of CLIP."""
    validate(config)
    for name in config.pipeline:
        train_run(config, name, folder)
    if not (folder / "export" / "export.json").exists():
        export_pipeline(config, folder, folder / "export")
    cascade = Cascade.load(folder / "export")
    return cascade.stages[-1], locate_in(folder)(config.encoders.clip)

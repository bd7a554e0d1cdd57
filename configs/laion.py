"""The paper's text-to-image settings on LAION-400M in img2dataset shards.

T = 1000, cosine schedule, four cross-modal blocks in the adapter, AdamW (0.9, 0.999) without
weight decay, learning rate 1e-4 after 10,000 warm-up steps, batch 1024, 64 -> 256 cascade
(ContextDiff, section 5 and appendix). Networks as in Imagen, appendix F; text by T5-XXL.

  python -m contextdiff_jax.main --config=configs/laion.py --workdir=gs://BUCKET/laion --run=base \
      --config.data_path='gs://BUCKET/laion400m/{00000..41454}.tar'

encoders.*.path: folders of google/t5-v1_1-xxl and openai/clip-vit-base-patch32.

Preset laion.py:tiny is the same code path at toy size. It trains its own CLIP, so it needs only
shards; --config.encoders.*.path points it to other encoders.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import (
    AdapterConfig,
    EfficientUNetConfig,
    UNetConfig,
    contextdiff_adapter,
    imagen_base,
    imagen_sr,
)
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.super_resolution import SuperResolutionConfig
from contextdiff_jax.tasks.task_config import TaskConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig

PRESETS = ("", "tiny")
PROMPTS = (
    "a brown bear sitting in the grass",
    "a bowl of fruit on a wooden table",
    "a red double-decker bus on a city street",
    "an astronaut riding a horse",
)


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    config = cfg.Config(
        name="laion",
        pipeline=("base", "sr"),
        runs={"base": _base(), "sr": _super_resolution()},
        # Parameters, moments and EMA of the base model are 36 GB: an eighth of it fits everywhere.
        mesh=cfg.MeshConfig(data=-1, fsdp=8),
        encoders=cfg.EncodersConfig(
            text=cfg.EncoderRef(kind="t5", path="weights/t5-v1_1-xxl", max_length=128),
            clip=cfg.EncoderRef(kind="clip", path="weights/clip-vit-base-patch32"),
        ),
        samples=cfg.SamplesConfig(prompts=PROMPTS, augmentation=0.2),
    )
    return cfg.to_config_dict(_tiny(config) if preset == "tiny" else config)


def _data(resolution: int) -> DataConfig:
    # Pictures that img2dataset enlarged teach blur: the original must have the pixels.
    return DataConfig(
        source="shards",
        resolution=resolution,
        resize_mode="center_crop",
        min_side=resolution,
        min_original_side=resolution,
    )


# The paper's objective is uniform in x0. v carries it with bounded weights at every t.
_DIFFUSION = DiffusionConfig(prediction="v", loss_weight="x0")


def _run(task: TaskConfig, resolution: int) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=task,
        data=_data(resolution),
        batch_size=1024,
        steps=1_000_000,
        optimizer=cfg.OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000, ema_decay=0.9999),
        log_every=100,
        save_every=2500,
    )


def _base() -> cfg.RunConfig:
    task = TextToImageConfig(
        unet=dataclasses.replace(imagen_base(), remat="blocks"),
        adapter=contextdiff_adapter(),
        diffusion=_DIFFUSION,
        sampler=SamplerConfig(name="ddpm", num_steps=250, guidance_scale=1.35, threshold="dynamic"),
        preview=PreviewConfig(every=5000, prompts=PROMPTS, num_steps=50),
        diagnose_every=5000,
    )
    return _run(task, 64)


def _super_resolution() -> cfg.RunConfig:
    task = SuperResolutionConfig(
        # The two coarse levels have 16 of the 22 blocks on either side and few pixels: kept.
        efficient_unet=dataclasses.replace(imagen_sr(), remat="blocks", remat_levels=2),
        low_resolution=64,
        # An 8x8 grid as at 64 pixels: patches of 8 would cost 14 % of the step instead of 2 %.
        adapter=dataclasses.replace(contextdiff_adapter(), patch_size=32),
        diffusion=_DIFFUSION,
        sampler=SamplerConfig(name="ddpm", num_steps=100, guidance_scale=8.0, threshold="dynamic"),
        preview=PreviewConfig(every=5000, num_steps=20),
        diagnose_every=5000,
    )
    return _run(task, 256)


_TINY_WIDTH = 32


def _tiny_data(resolution: int) -> DataConfig:
    return dataclasses.replace(_data(resolution), min_side=8, min_original_side=0)


def _tiny_clip() -> cfg.RunConfig:
    width = _TINY_WIDTH
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(width, 1, 2, image_size=32, patch_size=8, max_length=32),
            tokenizer=TokenizerConfig(vocab_size=600),
        ),
        data=_tiny_data(32),
        batch_size=16,
        steps=20,
        optimizer=cfg.OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
        log_every=10,
        save_every=10,
    )


def _tiny(config: cfg.Config) -> cfg.Config:
    """Toy networks at 16 -> 64 over the same data path, encoders trained in the pipeline."""
    width = _TINY_WIDTH
    adapter = AdapterConfig(
        patch_size=8,
        width=32,
        num_blocks=1,
        heads=2,
        time_width=32,
        image_dim=width,
        text_dim=width,
    )
    few = {
        "batch_size": 8,
        "steps": 20,
        "log_every": 5,
        "save_every": 10,
        "optimizer": cfg.OptimizerConfig(learning_rate=1e-3, warmup_steps=5, ema_decay=0.9),
    }
    base = cfg.with_task(
        dataclasses.replace(config.runs["base"], **few, data=_tiny_data(16)),
        adapter=adapter,
        diagnose_every=20,
        preview=PreviewConfig(every=20, prompts=PROMPTS, num_steps=4),
        unet=UNetConfig(
            width=16,
            multipliers=(1, 2),
            num_blocks=1,
            attention_levels=(1,),
            head_dim=16,
            groups=8,
            text_dim=width,
            text_width=width,
            scan_blocks=False,
        ),
        sampler=SamplerConfig(name="ddpm", num_steps=8, guidance_scale=1.35, threshold="dynamic"),
    )
    sr = cfg.with_task(
        dataclasses.replace(config.runs["sr"], **few, data=_tiny_data(64)),
        adapter=adapter,
        diagnose_every=20,
        preview=PreviewConfig(every=20, num_steps=4),
        low_resolution=16,
        efficient_unet=EfficientUNetConfig(
            channels=(16, 32),
            num_blocks=(1, 1),
            strides=(2, 2),
            attention_levels=(1,),
            heads=2,
            groups=8,
            text_dim=width,
            scan_blocks=False,
        ),
        sampler=SamplerConfig(name="ddpm", num_steps=4, guidance_scale=2.0, threshold="dynamic"),
    )
    return dataclasses.replace(
        config,
        pipeline=("clip", "base", "sr"),
        runs={"clip": _tiny_clip(), "base": base, "sr": sr},
        encoders=cfg.EncodersConfig(),
        mesh=cfg.MeshConfig(),
    )

"""Captioned 3D emoji, 64 -> 256, sized for one GPU; preset emoji.py:cpu is 16 -> 64 on a laptop.

  python -m contextdiff_jax.main --config=configs/emoji.py:cpu --workdir=runs/emoji \
      --config.data_path=PATH/TO/emoji_shards

Any folder of img2dataset shards will do. The domain has no published encoders: the pipeline
trains its own CLIP first.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import EfficientUNetConfig, UNetConfig, small_adapter
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.super_resolution import SuperResolutionConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig
from contextdiff_jax.training.optimizer import cosine_decay

PRESETS = ("", "cpu")
PROMPTS = (
    "red apple, 3D render",
    "red heart, 3D render",
    "blue heart, 3D render",
    "green apple, 3D render",
    "full moon, 3D render",
    "sunflower, 3D render",
    "soccer ball, 3D render",
    "grinning face, 3D render",
    "cat face, 3D render",
    "yellow circle, 3D render",
    "green book, 3D render",
    "fire, 3D render",
    "watermelon, 3D render",
    "four leaf clover, 3D render",
    "kick scooter, 3D render",
    "blue circle, 3D render",
)


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    cpu = preset == "cpu"
    width = 128 if cpu else 512
    return cfg.to_config_dict(
        cfg.Config(
            name="emoji",
            pipeline=("clip", "base", "sr"),
            runs={
                "clip": _clip(width, cpu),
                "base": _base_cpu(width) if cpu else _base(width),
                "sr": _super_resolution_cpu(width) if cpu else _super_resolution(width),
            },
            samples=cfg.SamplesConfig(prompts=PROMPTS, augmentation=0.1),
        )
    )


def _data(resolution: int) -> DataConfig:
    return DataConfig(source="shards", resolution=resolution, resize_mode="border")


def _clip(width: int, cpu: bool) -> cfg.RunConfig:
    side, layers = (32, 2) if cpu else (64, 6)
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(
                width, layers, width // 32, image_size=side, patch_size=8, max_length=24
            ),
            tokenizer=TokenizerConfig(vocab_size=2048),
        ),
        data=_data(side),
        batch_size=128 if cpu else 256,
        steps=400 if cpu else 3000,
        optimizer=cosine_decay(1e-3, 100, 0.98),
        log_every=50,
        save_every=200,
    )


def _base(width: int) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=TextToImageConfig(
            diagnose_every=2000,
            preview=PreviewConfig(every=2000, prompts=PROMPTS),
            unet=UNetConfig(
                width=128,
                multipliers=(1, 2, 3, 4),
                num_blocks=2,
                attention_levels=(1, 2, 3),
                text_dim=width,
                text_width=None,
            ),
            adapter=small_adapter(384, 4, patch_size=8, encoder_width=width),
            diffusion=DiffusionConfig(prediction="v", loss_weight="snr_plus_1"),
            sampler=SamplerConfig(
                name="dpm_solver++", num_steps=30, guidance_scale=2.5, threshold="dynamic"
            ),
        ),
        data=_data(64),
        batch_size=128,
        steps=60_000,
        optimizer=cosine_decay(2e-4, 1000, 0.9995),
    )


def _super_resolution(width: int) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=SuperResolutionConfig(
            diagnose_every=2000,
            preview=PreviewConfig(every=2000),
            low_resolution=64,
            efficient_unet=EfficientUNetConfig(
                channels=(64, 128, 256, 512), num_blocks=(2, 2, 4, 4), text_dim=width
            ),
            adapter=small_adapter(384, 4, patch_size=16, encoder_width=width),
            diffusion=DiffusionConfig(prediction="v", loss_weight="snr_plus_1"),
            sampler=SamplerConfig(
                name="ddim", num_steps=20, guidance_scale=1.5, threshold="dynamic"
            ),
        ),
        data=_data(256),
        batch_size=64,
        steps=40_000,
        optimizer=cosine_decay(2e-4, 1000, 0.9995),
    )


# A small network learns to return the picture itself soonest.
_SMALL = DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1")


def _base_cpu(width: int) -> cfg.RunConfig:
    return cfg.with_task(
        dataclasses.replace(
            _base(width),
            data=_data(16),
            batch_size=32,
            steps=5000,
            optimizer=cosine_decay(1e-3, 200, 0.998),
            log_every=100,
            save_every=500,
        ),
        diagnose_every=1000,
        preview=PreviewConfig(every=1000, prompts=PROMPTS, num_steps=15),
        unet=UNetConfig(
            width=32,
            multipliers=(1, 2, 3),
            num_blocks=1,
            attention_levels=(1, 2),
            head_dim=32,
            groups=8,
            text_dim=width,
            text_width=None,
            scan_blocks=False,
        ),
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=width),
        diffusion=_SMALL,
        sampler=SamplerConfig(
            name="dpm_solver++", num_steps=20, guidance_scale=2.5, threshold="dynamic"
        ),
    )


def _super_resolution_cpu(width: int) -> cfg.RunConfig:
    return cfg.with_task(
        dataclasses.replace(
            _super_resolution(width),
            data=_data(64),
            batch_size=8,
            steps=1500,
            optimizer=cosine_decay(1e-3, 100, 0.995),
            log_every=50,
            save_every=250,
        ),
        diagnose_every=500,
        preview=PreviewConfig(every=500, num_steps=5),
        low_resolution=16,
        augmentation=0.25,
        efficient_unet=EfficientUNetConfig(
            channels=(24, 48, 64),
            num_blocks=(1, 1, 2),
            strides=(2, 2, 2),
            attention_levels=(2,),
            heads=2,
            groups=8,
            text_dim=width,
            scan_blocks=False,
            residual=True,
        ),
        # With an adapter limit of 1.0, without consistency and with augmentation 0.5, results left
        # their low-resolution image further: consistency_rms 0.12 instead of 0.07 at the end.
        adapter=small_adapter(64, 2, patch_size=16, encoder_width=width),
        diffusion=dataclasses.replace(_SMALL, relation_consistency=1.0),
        sampler=SamplerConfig(name="ddim", num_steps=10, threshold="static"),
    )

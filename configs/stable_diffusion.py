"""Stable Diffusion 1.5 with a context-aware adapter: the U-Net stays as it was published.

  python -m contextdiff_jax.main --config=configs/stable_diffusion.py --workdir=runs/sd \
      --config.model=stable-diffusion-v1-5 --config.encoders.clip.path=clip-vit-large-patch14 \
      --config.runs.base.task.first_stage.decoder=taesd --config.data_path='laion/*.tar'

Presets: without_clip has an adapter that reads latents and text alone, and needs neither CLIP nor a
tiny decoder. lora trains updates of low rank instead, whole all of the U-Net, without an adapter.
taef2 is a small model of its own, trained from nothing on a CPU in the latents of a tiny first
stage (--config.runs.base.task.first_stage.path). tiny is for tests: a U-Net of 31 thousand weights.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import AdapterConfig, small_adapter
from contextdiff_jax.networks.latent_config import (
    LatentUNetConfig,
    stable_diffusion_1,
    tiny_latent_unet,
)
from contextdiff_jax.networks.lora import LoRAConfig
from contextdiff_jax.sampling.config import SamplerConfig, published_ddim
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImageConfig

PRESETS = ("", "without_clip", "lora", "whole", "taef2", "tiny")

PROMPTS = (
    "a photograph of an astronaut riding a horse",
    "a watercolour of a lighthouse in a storm",
    "a red cube on top of a blue sphere",
    "",
)
EMOJI = (
    "red apple, 3D render",
    "red heart, 3D render",
    "blue heart, 3D render",
    "green apple, 3D render",
    "sunflower, 3D render",
    "grinning face, 3D render",
    "cat face, 3D render",
    "green book, 3D render",
    "fire, 3D render",
)

_TEXT = cfg.EncoderRef(path="model:text_encoder")


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    made = {"without_clip": _without_clip, "lora": _lora, "whole": _whole}
    made |= {"taef2": _taef2, "tiny": _tiny}
    return cfg.to_config_dict(made.get(preset, _adapter)())


def _adapter() -> cfg.Config:
    """The adapter alone trains; CLIP sees x0_hat through the tiny decoder of the command."""
    return cfg.Config(
        name="stable_diffusion",
        pipeline=("base",),
        runs={"base": _run(fresh=("adapter",), trainable=("adapter",))},
        encoders=cfg.EncodersConfig(text=_TEXT, clip=cfg.EncoderRef(path="clip-vit-large-patch14")),
        samples=cfg.SamplesConfig(prompts=PROMPTS, batch_size=4),
    )


def _without_clip() -> cfg.Config:
    config = _adapter()
    run = config.runs["base"]
    adapter = dataclasses.replace(run.task.adapter, image_dim=None)
    return dataclasses.replace(
        config,
        runs={"base": cfg.with_task(run, adapter=adapter)},
        encoders=cfg.EncodersConfig(text=_TEXT, clip=_TEXT),
    )


def _lora() -> cfg.Config:
    config = _adapter()
    run = _run(fresh=("lora",), trainable=("lora",))
    run = cfg.with_task(run, lora=LoRAConfig(rank=8, alpha=8.0), adapter=None)
    run = dataclasses.replace(run, optimizer=_optimizer(1e-4))
    return dataclasses.replace(config, use_adapter=False, runs={"base": run})


def _whole() -> cfg.Config:
    config = _adapter()
    run = dataclasses.replace(
        cfg.with_task(_run(fresh=(), trainable=()), adapter=None), optimizer=_optimizer(1e-5)
    )
    return dataclasses.replace(config, use_adapter=False, runs={"base": run})


def _run(fresh: tuple[str, ...], trainable: tuple[str, ...]) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=LatentTextToImageConfig(
            latent_unet=dataclasses.replace(stable_diffusion_1(), remat="blocks"),
            first_stage=FirstStageRef("model:vae"),
            # 16 x 16 queries of 4 x 4 latents. Latents of unit variance are up to 4 large.
            adapter=AdapterConfig(image_channels=4, patch_size=4, image_dim=1024, text_dim=768),
            diffusion=DiffusionConfig(
                schedule="scaled_linear", prediction="eps", loss_weight="snr"
            ),
            sampler=published_ddim(50, 7.5),
            preview=PreviewConfig(every=5000, prompts=PROMPTS, num_steps=25),
        ),
        data=DataConfig(source="shards", resolution=512),
        batch_size=256,
        steps=50_000,
        optimizer=_optimizer(1e-4),
        start_from=cfg.WarmStartConfig("model:unet", fresh=fresh),
        trainable=trainable,
    )


def _optimizer(learning_rate: float) -> cfg.OptimizerConfig:
    return cfg.OptimizerConfig(learning_rate=learning_rate, warmup_steps=1000, weight_decay=1e-2)


# ---- a small model of its own, for TAEF2


_WIDTH = 128  # of both encoders
# Of TAEF2's latents of 160 of the emoji at 64 pixels, by `prepare --what=latents`.
_MEAN = (
    *(0.2941, -0.2453, 0.6998, 0.7615, 0.01821, -0.6295, 0.04881, 0.3498),
    *(-0.5993, 0.2816, -0.1306, 0.0505, 0.3376, 0.005352, -0.4656, 0.2662),
    *(-0.58, 0.5442, 0.353, 0.6988, 0.1484, -0.06512, 0.1655, -0.7604),
    *(-0.08307, -0.2379, -0.1059, -0.2473, 0.03139, -0.5062, -0.008719, 0.3757),
)
_STD = (
    *(0.6429, 0.8832, 0.6933, 0.9901, 0.5473, 0.8388, 0.7756, 0.5453),
    *(0.9531, 0.5073, 0.5574, 0.9241, 0.6515, 0.5536, 0.7968, 0.8574),
    *(0.5931, 0.7198, 0.5124, 0.9001, 0.6676, 0.5426, 0.6518, 0.6382),
    *(0.6918, 0.6636, 0.9538, 0.6463, 0.6152, 0.7984, 0.5512, 0.9801),
)


def _taef2() -> cfg.Config:
    """Captioned 3D emoji of 64 pixels; 8 x 8 latents of 32 channels."""
    base = cfg.RunConfig(
        task=LatentTextToImageConfig(
            latent_unet=LatentUNetConfig(
                image_channels=32,
                channels=(96, 192),
                num_blocks=1,
                attention_levels=(0, 1),
                heads=(3, 6),
                groups=16,
                context_dim=_WIDTH,
                sample_size=8,
            ),
            first_stage=FirstStageRef("taef2", mean=_MEAN, std=_STD),
            adapter=dataclasses.replace(
                small_adapter(96, 2, patch_size=1, encoder_width=_WIDTH), image_channels=32
            ),
            diffusion=DiffusionConfig(prediction="v", loss_weight="min_snr_5_plus_1"),
            sampler=SamplerConfig(
                name="dpm_solver++", num_steps=20, guidance_scale=2.5, threshold="none"
            ),
            preview=PreviewConfig(every=1000, prompts=EMOJI, num_steps=15),
        ),
        data=_emoji(64),
        batch_size=32,
        steps=4000,
        optimizer=cfg.OptimizerConfig(
            learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.998
        ),
        log_every=50,
        save_every=500,
    )
    return cfg.Config(
        name="stable_diffusion_taef2",
        pipeline=("clip", "base"),
        runs={"clip": _clip(), "base": base},
        samples=cfg.SamplesConfig(prompts=EMOJI),
    )


def _emoji(resolution: int) -> DataConfig:
    return DataConfig(source="shards", resolution=resolution, resize_mode="border")


def _clip() -> cfg.RunConfig:
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(_WIDTH, 2, 4, image_size=32, patch_size=8, max_length=24),
            tokenizer=TokenizerConfig(vocab_size=2048),
        ),
        data=_emoji(32),
        batch_size=128,
        steps=300,
        optimizer=cfg.OptimizerConfig(
            learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.98
        ),
        log_every=50,
        save_every=300,
    )


# ---- for tests: a folder of random weights, and scenes for data


def _tiny() -> cfg.Config:
    config, task = _adapter(), _run((), ()).task
    small = dataclasses.replace(
        task,
        latent_unet=tiny_latent_unet(),
        adapter=AdapterConfig(
            image_channels=4,
            patch_size=4,
            width=16,
            num_blocks=1,
            heads=2,
            time_width=16,
            image_dim=None,
            text_dim=24,
        ),
        sampler=published_ddim(3, 5.0),
        preview=PreviewConfig(every=2, prompts=("a red circle", ""), num_steps=2),
    )
    run = dataclasses.replace(
        config.runs["base"],
        task=small,
        data=DataConfig(resolution=32, threads=1),
        batch_size=4,
        steps=2,
        optimizer=cfg.OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        log_every=1,
        save_every=1,
    )
    return dataclasses.replace(
        config,
        name="stable_diffusion_tiny",
        runs={"base": run},
        encoders=cfg.EncodersConfig(text=_TEXT, clip=_TEXT),
        samples=cfg.SamplesConfig(prompts=("a red circle", "of"), batch_size=2),
    )

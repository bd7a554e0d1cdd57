"""The whole pipeline on rendered scenes, from nothing to pictures in minutes on two CPU cores.

A text encoder for this domain, a 16x16 base and a 16 -> 64 super-resolution, then samples:

  python -m contextdiff_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

The base is trained by flow matching, which follows prompts better than the paper's process with
its own weight. The paper's adapter is of that process alone, and with guidance it did not help, so
no stage has it here (docs/evidence.md). Presets: quickstart.py:adapter is the paper's process with
its adapter, quickstart.py:plain that process without it, quickstart.py:test a few steps of
quickstart.py:adapter.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import RELATIONS
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import AdapterConfig, EfficientUNetConfig, UNetConfig
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.super_resolution import SuperResolutionConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig

PRESETS = ("", "adapter", "plain", "test")

PROMPTS = (
    "a red circle",
    "a blue square",
    "a green triangle",
    "a yellow diamond",
    "a purple cross",
    "a cyan circle",
    "a pink square",
    "a black triangle",
    "a red square left of a blue circle",
    "a green circle above a purple square",
    "a yellow triangle right of a black cross",
    "a pink diamond below a cyan triangle",
    "",
)

WIDTH = 64  # of both encoders


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    config = cfg.Config(
        name="quickstart",
        use_adapter=preset in ("adapter", "test"),
        pipeline=("clip", "base", "sr"),
        runs={
            "clip": _clip(),
            "base": _base(_by_x0() if preset else _flow()),
            "sr": _super_resolution(),
        },
        samples=cfg.SamplesConfig(prompts=PROMPTS),
    )
    if preset == "test":
        config = _short(config)
    return cfg.to_config_dict(config)


def _flow() -> DiffusionConfig:
    """Flow matching of the velocity, with more of the middle times (docs/flow.md).

    With guidance, Euler (DDIM is the same) is as good as AB2 at 8 calls, and better at 4.
    """
    return DiffusionConfig(kind="flow", times="logit_normal")


def _by_x0() -> DiffusionConfig:
    """The paper's process; the weight reaches the noisy times, which decide what is where."""
    return DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1")


def _data(resolution: int) -> DataConfig:
    return DataConfig(source="scenes", resolution=resolution, scenes=ScenesConfig(pairs=0.5))


def _clip() -> cfg.RunConfig:
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(WIDTH, 2, 4, image_size=16, patch_size=4, max_length=16),
            tokenizer=TokenizerConfig(vocab_size=512, sample=5_000),
            exchange_around=RELATIONS,
        ),
        data=_data(16),
        batch_size=128,
        steps=500,
        optimizer=cfg.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=25, decay="cosine", weight_decay=1e-2, ema_decay=0.98
        ),
        log_every=50,
        save_every=250,
    )


def _base(diffusion: DiffusionConfig) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=TextToImageConfig(
            diagnose_every=1000,
            preview=PreviewConfig(every=1000, prompts=PROMPTS[:9], num_steps=8),
            unet=UNetConfig(
                width=24,
                multipliers=(1, 2),
                num_blocks=1,
                attention_levels=(1,),
                head_dim=16,
                groups=8,
                text_dim=WIDTH,
                text_width=None,
                scan_blocks=False,
            ),
            adapter=_adapter(patch_size=4),
            diffusion=diffusion,
            sampler=SamplerConfig(name="ddim", num_steps=8, guidance_scale=2.0, threshold="static"),
        ),
        data=_data(16),
        batch_size=16,
        steps=2800,
        optimizer=cfg.OptimizerConfig(
            learning_rate=4e-3, warmup_steps=100, decay="cosine", ema_decay=0.99
        ),
        log_every=100,
        save_every=500,
    )


def _super_resolution() -> cfg.RunConfig:
    return cfg.RunConfig(
        task=SuperResolutionConfig(
            preview=PreviewConfig(every=0),  # the samples are drawn right after it
            low_resolution=16,
            augmentation=0.1,
            efficient_unet=EfficientUNetConfig(
                channels=(24, 32, 48),
                num_blocks=(1, 1, 1),
                strides=(2, 2, 2),
                attention_levels=(2,),
                heads=4,
                groups=8,
                text_dim=WIDTH,
                residual=True,
                scan_blocks=False,
            ),
            adapter=_adapter(patch_size=16),
            diffusion=_by_x0(),  # what a residual network predicts
            sampler=SamplerConfig(name="ddim", num_steps=8, threshold="static"),
        ),
        data=_data(64),
        batch_size=4,
        steps=700,
        optimizer=cfg.OptimizerConfig(
            learning_rate=2e-3, warmup_steps=50, decay="cosine", ema_decay=0.995
        ),
        log_every=100,
        save_every=350,
    )


def _adapter(patch_size: int) -> AdapterConfig:
    return AdapterConfig(
        patch_size=patch_size,
        width=64,
        num_blocks=2,
        heads=4,
        mlp_ratio=2,
        time_width=64,
        image_dim=WIDTH,
        text_dim=WIDTH,
    )


def _short(config: cfg.Config) -> cfg.Config:
    """The same code path in a few steps of fewer layers, for the tests."""
    runs = {
        name: dataclasses.replace(run, steps=4, batch_size=8, log_every=2, save_every=2)
        for name, run in _shallow(config.runs).items()
    }
    for name in ("base", "sr"):
        task = runs[name].task
        runs[name] = cfg.with_task(
            runs[name],
            diagnose_every=4,  # a fortieth of the process's steps
            diffusion=dataclasses.replace(task.diffusion, num_steps=100),
            preview=dataclasses.replace(
                task.preview, every=4, prompts=task.preview.prompts[:2], num_steps=2
            ),
            sampler=dataclasses.replace(task.sampler, num_steps=2),
        )
    samples = cfg.SamplesConfig(prompts=("a red circle", "", "a blue square"), batch_size=2)
    return dataclasses.replace(config, runs=runs, samples=samples)


def _shallow(runs: dict[str, cfg.RunConfig]) -> dict[str, cfg.RunConfig]:
    """What is compiled in tests: one layer, block or level of everything that repeats."""
    clip, base, sr = (run.task for run in runs.values())
    one_level = dataclasses.replace(base.unet, multipliers=(1,), attention_levels=(0,), head_dim=8)
    network = dataclasses.replace(
        sr.efficient_unet,
        channels=(24, 32),
        num_blocks=(1, 1),
        strides=(2, 2),
        attention_levels=(1,),
    )
    one_layer = dataclasses.replace(clip.clip, text_layers=1, vision_layers=1)
    one_block = {
        name: dataclasses.replace(task.adapter, num_blocks=1)
        for name, task in (("base", base), ("sr", sr))
    }
    return {
        "clip": cfg.with_task(runs["clip"], clip=one_layer),
        "base": cfg.with_task(runs["base"], adapter=one_block["base"], unet=one_level),
        "sr": cfg.with_task(runs["sr"], adapter=one_block["sr"], efficient_unet=network),
    }

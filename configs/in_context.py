"""In-context generation on rendered scenes at 16x16, minutes on two CPU cores.

A query shows the layout, context pictures show colour and texture, a prompt may name both:

  python -m contextdiff_jax.main --config=configs/in_context.py:scenes --workdir=runs/in_context

The pipeline trains a CLIP for the domain first. in_context.py:test is a few steps of it. With the
adapter: --config.use_adapter=True.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import UNetConfig, small_adapter
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.in_context import ContextConfig, InContextConfig

PRESETS = ("", "scenes", "test")

WIDTH = 64  # of both encoders


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    config = cfg.Config(
        name="in_context",
        use_adapter=False,
        pipeline=("clip", "base"),
        runs={"clip": _clip(), "base": _base()},
    )
    return cfg.to_config_dict(_short(config) if preset == "test" else config)


def _data() -> DataConfig:
    return DataConfig(resolution=16, scenes=ScenesConfig(pairs=0.0, context=3))


def _optimizer(learning_rate: float, warmup: int, ema: float) -> cfg.OptimizerConfig:
    return cfg.OptimizerConfig(
        learning_rate=learning_rate, warmup_steps=warmup, decay="cosine", ema_decay=ema
    )


def _clip() -> cfg.RunConfig:
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(WIDTH, 2, 4, image_size=16, patch_size=4, max_length=24),
            tokenizer=TokenizerConfig(vocab_size=512, sample=5_000),
        ),
        data=_data(),
        batch_size=128,
        steps=200,
        optimizer=_optimizer(2e-3, 25, 0.98),
        log_every=50,
        save_every=100,
    )


def _base() -> cfg.RunConfig:
    task = InContextConfig(
        context=ContextConfig(most=3),
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
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=WIDTH),
        diffusion=DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=25, guidance_scale=2.0, threshold="static"),
        preview=PreviewConfig(every=1000, num_steps=10),
        diagnose_every=1000,
    )
    return cfg.RunConfig(
        task=task,
        data=_data(),
        batch_size=16,
        steps=3000,
        optimizer=_optimizer(4e-3, 100, 0.99),
        log_every=100,
        save_every=500,
    )


def _short(config: cfg.Config) -> cfg.Config:
    """The same code path in a few steps of fewer layers, for the tests."""
    runs = {
        name: dataclasses.replace(run, steps=4, batch_size=8, log_every=2, save_every=2)
        for name, run in config.runs.items()
    }
    clip, base = runs["clip"].task, runs["base"].task
    one_layer = dataclasses.replace(clip.clip, text_layers=1, vision_layers=1)
    return dataclasses.replace(
        config,
        runs={
            "clip": cfg.with_task(runs["clip"], clip=one_layer),
            "base": cfg.with_task(
                runs["base"],
                adapter=dataclasses.replace(base.adapter, num_blocks=1),
                preview=dataclasses.replace(base.preview, every=4, num_steps=2),
                sampler=dataclasses.replace(base.sampler, num_steps=2),
                diagnose_every=4,
            ),
        },
    )

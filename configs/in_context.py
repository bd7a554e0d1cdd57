"""In-context generation: a query shows where, context pictures show how, a prompt may say both.

Without a preset: pictures in several styles (StylesConfig) at 64x64, sized for one GPU.

  python -m contextdiff_jax.main --config=configs/in_context.py --workdir=runs/styles \
      --config.data_path=PATH/TO/FOLDER

Presets for a laptop: in_context.py:scenes is rendered scenes at 16x16 without any download,
in_context.py:emoji a folder of emoji in several styles at 32x32 (--config.data_path=FOLDER).
in_context.py:test is a few steps of scenes. The pipeline trains a CLIP for the domain first. With
the adapter: --config.use_adapter=True.

in_context.py:stable_diffusion is Context Diffusion itself, in the latents of Stable Diffusion 1.5;
latent_tiny is for tests: a U-Net of 31 thousand weights, and scenes.

  python -m contextdiff_jax.main --config=configs/in_context.py:stable_diffusion --workdir=runs/sd \
      --config.model=stable-diffusion-v1-5 --config.encoders.clip.path=clip-vit-large-patch14 \
      --config.data_path=PATH/TO/FOLDER
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig, ScenesConfig, StylesConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import AdapterConfig, UNetConfig, small_adapter
from contextdiff_jax.networks.latent_config import stable_diffusion_1, tiny_latent_unet
from contextdiff_jax.sampling.config import SamplerConfig, published_ddim
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.in_context import ContextConfig, InContextConfig
from contextdiff_jax.tasks.latent_in_context import LatentInContextConfig
from contextdiff_jax.training.optimizer import cosine_decay

PRESETS = ("", "scenes", "emoji", "stable_diffusion", "latent_tiny", "test")

MOST = 3  # pictures of context


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    if preset in ("stable_diffusion", "latent_tiny"):
        made = {"stable_diffusion": _stable_diffusion, "latent_tiny": _latent_tiny}
        return cfg.to_config_dict(made[preset]())
    runs = {"": _styles, "emoji": _emoji}.get(preset, _scenes)()
    config = cfg.Config(
        name=f"in_context_{preset or 'styles'}",
        use_adapter=False,
        pipeline=("clip", "base"),
        runs=runs,
    )
    return cfg.to_config_dict(cfg.few_steps(config) if preset == "test" else config)


def _folder(side: int) -> DataConfig:
    styles = StylesConfig(context=MOST)
    return DataConfig(source="folder", resolution=side, resize_mode="border", styles=styles)


def _styles() -> dict[str, cfg.RunConfig]:
    data, width = _folder(64), 512
    unet = UNetConfig(
        width=128,
        multipliers=(1, 2, 3, 4),
        num_blocks=2,
        attention_levels=(1, 2, 3),
        text_dim=width,
        text_width=None,
    )
    base = cfg.with_task(
        dataclasses.replace(
            _base(data, width, unet),
            batch_size=128,
            steps=60_000,
            optimizer=cosine_decay(2e-4, 1000, 0.9995),
        ),
        diffusion=DiffusionConfig(prediction="v", loss_weight="snr_plus_1"),
        adapter=small_adapter(384, 4, patch_size=8, encoder_width=width),
    )
    clip = ContrastiveConfig(
        clip=equal_towers(width, 6, 16, image_size=64, patch_size=8, max_length=24),
        tokenizer=TokenizerConfig(vocab_size=2048),
    )
    return {"clip": _clip(data, clip, 256, 3000), "base": base}


def _emoji() -> dict[str, cfg.RunConfig]:
    data, width = _folder(32), 128
    clip = ContrastiveConfig(
        clip=equal_towers(width, 2, 4, image_size=32, patch_size=8, max_length=24),
        tokenizer=TokenizerConfig(vocab_size=2048),
    )
    unet = UNetConfig(
        width=32,
        multipliers=(1, 2, 3),
        num_blocks=1,
        attention_levels=(1, 2),
        head_dim=32,
        groups=8,
        text_dim=width,
        text_width=None,
        scan_blocks=False,
    )
    base = dataclasses.replace(_base(data, width, unet), steps=5000)
    return {"clip": _clip(data, clip, 128, 400), "base": base}


def _scenes() -> dict[str, cfg.RunConfig]:
    scenes = ScenesConfig(pairs=0.0, context=MOST)
    data, width = DataConfig(resolution=16, scenes=scenes), 64
    clip = ContrastiveConfig(
        clip=equal_towers(width, 2, 4, image_size=16, patch_size=4, max_length=24),
        tokenizer=TokenizerConfig(vocab_size=512, sample=5_000),
    )
    unet = UNetConfig(
        width=24,
        multipliers=(1, 2),
        num_blocks=1,
        attention_levels=(1,),
        head_dim=16,
        groups=8,
        text_dim=width,
        text_width=None,
        scan_blocks=False,
    )
    return {"clip": _clip(data, clip, 128, 150), "base": _base(data, width, unet)}


def _clip(data: DataConfig, task: ContrastiveConfig, batch: int, steps: int) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=task,
        data=data,
        batch_size=batch,
        steps=steps,
        optimizer=cosine_decay(2e-3 if steps < 1000 else 1e-3, 25, 0.98),
        log_every=50,
        save_every=100,
    )


def _base(data: DataConfig, width: int, unet: UNetConfig) -> cfg.RunConfig:
    """The run of a small network."""
    task = InContextConfig(
        context=ContextConfig(most=MOST),
        unet=unet,
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=width),
        # A small network learns to return the picture itself soonest.
        diffusion=DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=25, guidance_scale=2.0, threshold="static"),
        preview=PreviewConfig(every=1000, num_steps=10),
        diagnose_every=1000,
    )
    return cfg.RunConfig(
        task=task,
        data=data,
        batch_size=16,
        steps=3000,
        optimizer=cosine_decay(4e-3, 100, 0.99),
        log_every=100,
        save_every=500,
    )


# ---- in the latents of Stable Diffusion


def _stable_diffusion() -> cfg.Config:
    """Of the U-Net the encoder stays as it was published (Context Diffusion, section 3)."""
    trainable = ("denoiser/control", "denoiser/middle_*", "denoiser/up_*", "denoiser/head")
    task = LatentInContextConfig(
        latent_unet=dataclasses.replace(stable_diffusion_1(), remat="blocks"),
        first_stage=FirstStageRef("model:vae"),
        context=ContextConfig(most=MOST),
        # What is missing is what guidance leads away from: nothing else needs to be hidden.
        diffusion=DiffusionConfig(
            schedule="scaled_linear", prediction="eps", loss_weight="snr", drop_condition=0.0
        ),
        adapter=AdapterConfig(image_channels=4, patch_size=4, image_dim=1024, text_dim=768),
        sampler=published_ddim(50, 3.0),
        preview=PreviewConfig(every=5000, num_steps=25),
    )
    base = cfg.RunConfig(
        task=task,
        data=_folder(256),
        batch_size=512,
        steps=50_000,
        optimizer=cfg.OptimizerConfig(learning_rate=1e-4, warmup_steps=0),
        start_from=cfg.WarmStartConfig("model:unet", fresh=("denoiser/control", "conditions")),
        trainable=(*trainable, "conditions"),
    )
    clip = cfg.EncoderRef(path="clip-vit-large-patch14")
    return cfg.Config(
        name="in_context_stable_diffusion",
        use_adapter=False,
        pipeline=("base",),
        runs={"base": base},
        encoders=cfg.EncodersConfig(text=cfg.EncoderRef(path="model:text_encoder"), clip=clip),
        mesh=cfg.MeshConfig(data=-1, fsdp=8),
    )


def _latent_tiny() -> cfg.Config:
    """Scenes at 32 pixels, the CLIP of :test, a folder of random weights."""
    config, run = _stable_diffusion(), _stable_diffusion().runs["base"]
    small = cfg.few_steps(cfg.Config("scenes", _scenes(), ("clip", "base"))).runs
    run = cfg.with_task(
        run,
        latent_unet=tiny_latent_unet(),
        hint_channels=(8, 12, 16),
        adapter=dataclasses.replace(small["base"].task.adapter, image_channels=4),
        sampler=published_ddim(3, 3.0),
        preview=PreviewConfig(every=2, num_steps=2),
    )
    base = dataclasses.replace(
        run,
        data=dataclasses.replace(small["base"].data, resolution=32, threads=1),
        optimizer=cfg.OptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        batch_size=4,
        steps=2,
        log_every=1,
        save_every=1,
    )
    ref = cfg.EncoderRef(path="run:clip")
    return dataclasses.replace(
        config,
        name="in_context_latent_tiny",
        pipeline=("clip", "base"),
        runs={"clip": small["clip"], "base": base},
        encoders=dataclasses.replace(config.encoders, clip=ref),
        mesh=cfg.MeshConfig(),
    )

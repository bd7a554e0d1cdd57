"""CIFAR-10 at 32x32 for bits per dimension, sized for one GPU or TPU host.

  tfds build cifar10 --file_format=array_record
  python -m contextdiff_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The condition is a caption made from the class: "a photo of a cat". The U-Net is that of DDPM and
iDDPM with text, without their dropout; T = 1000, cosine. The domain has no published encoders:
the pipeline trains its own CLIP first.

Presets: cifar10.py:cpu is a small network with T = 250 for a laptop. cifar10.py:folder and
cifar10.py:cpu_folder are the same on a folder of images with a metadata.jsonl, the class name in
its column "label": --config.data_path=PATH, with the subfolders train and test. Without the
adapter: --config.use_adapter=False.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import UNetConfig, small_adapter
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig
from contextdiff_jax.training.optimizer import cosine_decay

PRESETS = ("", "cpu", "folder", "cpu_folder")
CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
TEMPLATE = "a photo of a {}"
PROMPTS = tuple(TEMPLATE.format(name) for name in CLASSES)


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    cpu, source = preset.startswith("cpu"), "folder" if preset.endswith("folder") else "tfds"
    width = 64 if cpu else 256
    data = DataConfig(
        source=source,
        path="cifar10" if source == "tfds" else "",
        resolution=32,
        caption_fields=("label",),
        caption_template=TEMPLATE,
    )
    base = _base(width, dataclasses.replace(data, flip=True))
    return cfg.to_config_dict(
        cfg.Config(
            name="cifar10",
            pipeline=("clip", "base"),
            runs={"clip": _clip(width, data, cpu), "base": _small(base, width) if cpu else base},
            samples=cfg.SamplesConfig(prompts=PROMPTS * 2),
        )
    )


def _clip(width: int, data: DataConfig, cpu: bool) -> cfg.RunConfig:
    layers = 2 if cpu else 4
    return cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(
                width, layers, width // 32, image_size=32, patch_size=4, max_length=16
            ),
            tokenizer=TokenizerConfig(vocab_size=512, sample=5_000),
        ),
        data=data,
        batch_size=64 if cpu else 256,
        steps=200 if cpu else 3000,
        optimizer=cosine_decay(1e-3, 50, 0.98),
        log_every=50,
        save_every=100 if cpu else 500,
    )


def _base(width: int, data: DataConfig) -> cfg.RunConfig:
    return cfg.RunConfig(
        task=TextToImageConfig(
            diagnose_every=5000,
            preview=PreviewConfig(every=5000, prompts=PROMPTS),
            unet=UNetConfig(
                width=128,
                multipliers=(1, 2, 2, 2),
                num_blocks=3,
                attention_levels=(1, 2),
                text_dim=width,
                text_width=None,
            ),
            adapter=small_adapter(256, 4, patch_size=4, encoder_width=width),
            diffusion=_DIFFUSION,
            sampler=SamplerConfig(name="ddpm", num_steps=250, threshold="static"),
        ),
        data=data,
        batch_size=128,
        steps=200_000,
        optimizer=dataclasses.replace(cosine_decay(2e-4, 5000, 0.9999), decay="constant"),
        save_every=5000,
    )


# Nothing is dropped: every example trains the conditional estimate that the bound measures. snr
# gives the noisy times, to which the bound pays little, no weight; pictures would need snr_plus_1.
_DIFFUSION = DiffusionConfig(prediction="v", loss_weight="snr", drop_condition=0.0)


def _small(base: cfg.RunConfig, width: int) -> cfg.RunConfig:
    return cfg.with_task(
        dataclasses.replace(
            base,
            batch_size=16,
            steps=1500,
            optimizer=cosine_decay(2e-3, 100, 0.995),
            save_every=250,
        ),
        diagnose_every=750,
        preview=PreviewConfig(every=750, prompts=PROMPTS, num_steps=10),
        unet=UNetConfig(
            width=24,
            multipliers=(1, 2, 2),
            num_blocks=1,
            attention_levels=(2,),
            head_dim=16,
            groups=8,
            text_dim=width,
            text_width=None,
            scan_blocks=False,
        ),
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=width),
        diffusion=dataclasses.replace(_DIFFUSION, num_steps=250),
        sampler=SamplerConfig(name="ddpm", num_steps=50, threshold="static"),
    )

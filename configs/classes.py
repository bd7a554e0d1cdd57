"""Pictures of a class: CIFAR-10's ten at 32x32, sized for one GPU or TPU host.

  tfds build cifar10 --file_format=array_record
  python -m contextdiff_jax.main --config=configs/classes.py --workdir=runs/classes

classes.py:folder reads its pictures from a folder (--config.data_path=PATH, benchmarks/gpu.sh).
Presets for a laptop: classes.py:scenes is the 40 combinations of colour and shape of rendered
scenes at 16x16, without any download; classes.py:flowers is a folder of flower photographs with
the class in the column "class_name" (--config.data_path=PATH), and classes.py:cpu_folder is
CIFAR-10 as a folder, the class in the column "label". classes.py:test is a few steps of scenes.
The adapter needs an image encoder: the pipeline trains a CLIP on the classes' names first.
Without the adapter: --config.use_adapter=False. classes.py:scenes_flow is scenes by flow matching,
without adapter and CLIP, for 4 to 8 steps (docs/flow.md), and classes.py:scenes_mean_flow by
MeanFlow, for one to four. classes.py:latent trains latent diffusion's ImageNet model
on the flowers, from the folder of its single file: --config.runs.base.start_from.path and
--config.runs.base.task.first_stage.path.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.class_label import LabelConfig
from contextdiff_jax.data.config import COLOURS, SHAPES, DataConfig, ScenesConfig
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import UNetConfig, small_adapter, small_unet
from contextdiff_jax.networks.latent_config import ldm_imagenet
from contextdiff_jax.sampling.config import SamplerConfig, published_ddim
from contextdiff_jax.tasks.class_to_image import ClassToImageConfig
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_class_to_image import LatentClassToImageConfig
from contextdiff_jax.training.optimizer import cosine_decay

PRESETS = ("", "scenes", "scenes_flow", "scenes_mean_flow", "flowers")
PRESETS += ("folder", "cpu_folder", "latent", "test")

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
SCENES = tuple(f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES)
FLOWERS = ("daisy", "dandelion", "rose", "sunflower", "tulip")

WIDTH = 64  # of the encoder and of what is learned of a class, in the small presets


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    made = {"": _cifar10, "folder": _cifar10_folder, "cpu_folder": _cpu_folder}
    made |= {"flowers": _flowers, "latent": _latent}
    made |= {"scenes_flow": _scenes_flow, "scenes_mean_flow": _scenes_mean_flow}
    config = made.get(preset, _scenes)()
    return cfg.to_config_dict(_short(config) if preset == "test" else config)


def _latent() -> cfg.Config:
    """cin256-v2 (Rombach et al. 2022): all of it trains on, the rows of its classes begin anew."""
    base = cfg.RunConfig(
        task=LatentClassToImageConfig(
            classes=FLOWERS,
            label=LabelConfig(width=512),
            latent_unet=dataclasses.replace(ldm_imagenet(), remat="blocks"),
            first_stage=FirstStageRef("cin256-v2"),
            diffusion=DiffusionConfig(
                schedule="scaled_linear",
                betas=(0.0015, 0.0195),
                prediction="eps",
                loss_weight="snr",
            ),
            sampler=published_ddim(50, 3.0),
            preview=PreviewConfig(every=1000, prompts=FLOWERS, num_steps=25),
        ),
        data=DataConfig(source="folder", resolution=256, caption_fields=("class_name",), flip=True),
        batch_size=64,
        steps=10_000,
        optimizer=cosine_decay(3e-5, 500, 0.9995),
        start_from=cfg.WarmStartConfig("cin256-v2", fresh=("conditions",)),
    )
    return cfg.Config(
        name="classes_latent",
        pipeline=("base",),
        runs={"base": base},
        use_adapter=False,
        samples=cfg.SamplesConfig(prompts=(*FLOWERS, "")),
    )


def _config(name: str, classes: tuple[str, ...], runs: dict[str, cfg.RunConfig]) -> cfg.Config:
    drawn = classes[:: max(1, len(classes) // 16)]
    return cfg.Config(
        name=f"classes_{name}",
        pipeline=("clip", "base"),
        runs=runs,
        samples=cfg.SamplesConfig(prompts=(*drawn, "")),
    )


def _cifar10() -> cfg.Config:
    source = DataConfig(source="tfds", path="cifar10", resolution=32, caption_fields=("label",))
    return _cifar10_of(source)


def _cifar10_folder() -> cfg.Config:
    return _cifar10_of(DataConfig(source="folder", resolution=32, caption_fields=("label",)))


def _cifar10_of(data: DataConfig) -> cfg.Config:
    width = 256
    clip = cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(width, 4, 8, image_size=32, patch_size=4, max_length=8),
            tokenizer=TokenizerConfig(vocab_size=300, sample=5_000),
        ),
        data=data,
        batch_size=256,
        steps=3000,
        optimizer=cosine_decay(1e-3, 50, 0.98),
    )
    task = ClassToImageConfig(
        classes=CIFAR10,
        label=LabelConfig(width=512, adapter_width=width, channels=128),
        unet=UNetConfig(
            width=128,
            multipliers=(1, 2, 2, 2),
            num_blocks=3,
            attention_levels=(1, 2),
            text_dim=512,
            text_width=None,
        ),
        adapter=small_adapter(256, 4, patch_size=4, encoder_width=width),
        diffusion=DiffusionConfig(prediction="v", loss_weight="snr_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=50, guidance_scale=1.5, threshold="static"),
        preview=PreviewConfig(every=5000, prompts=CIFAR10),
        diagnose_every=5000,
    )
    base = cfg.RunConfig(
        task=task,
        data=dataclasses.replace(data, flip=True),
        batch_size=128,
        steps=100_000,
        optimizer=dataclasses.replace(cosine_decay(2e-4, 5000, 0.9999), decay="constant"),
        save_every=5000,
    )
    return _config("cifar10", CIFAR10, {"clip": clip, "base": base})


def _scenes() -> cfg.Config:
    scenes = ScenesConfig(pairs=0.0, bare=1.0)
    data = DataConfig(source="scenes", resolution=16, scenes=scenes)
    return _config("scenes", SCENES, _small_runs(data, SCENES, steps=2500))


def _scenes_flow() -> cfg.Config:
    """Scenes by flow matching with more of the middle times, drawn in 8 steps."""
    sampler = SamplerConfig(name="ab2", num_steps=8, guidance_scale=1.5, threshold="static")
    diffusion = DiffusionConfig(kind="flow", times="logit_normal")
    changes = {"diffusion": diffusion, "sampler": sampler}
    return _plain_scenes("classes_scenes_flow", changes)


def _scenes_mean_flow() -> cfg.Config:
    """Scenes by MeanFlow, in two network calls."""
    task = _scenes().runs["base"].task
    changes = {
        "diffusion": DiffusionConfig(kind="flow", objective="mean_flow"),
        "sampler": SamplerConfig(name="mean_flow", num_steps=2),
        "preview": dataclasses.replace(task.preview, num_steps=2),
        "unet": dataclasses.replace(task.unet, attention_implementation="xla"),
    }
    return _plain_scenes("classes_scenes_mean_flow", changes)


def _plain_scenes(name: str, changes: Mapping[str, Any]) -> cfg.Config:
    """Scenes without adapter and CLIP, with these changes of the task."""
    config = _scenes()
    return dataclasses.replace(
        config,
        name=name,
        use_adapter=False,
        pipeline=("base",),
        runs={"base": cfg.with_task(config.runs["base"], **changes)},
    )


def _flowers() -> cfg.Config:
    return _folder("flowers", FLOWERS, "class_name")


def _cpu_folder() -> cfg.Config:
    return _folder("cifar10_cpu", CIFAR10, "label")


def _folder(name: str, classes: tuple[str, ...], column: str) -> cfg.Config:
    data = DataConfig(source="folder", resolution=32, caption_fields=(column,), flip=True)
    return _config(name, classes, _small_runs(data, classes, steps=3000))


def _small_runs(data: DataConfig, classes: tuple[str, ...], steps: int) -> dict[str, cfg.RunConfig]:
    """A CLIP and a base for two CPU cores."""
    side = data.resolution
    clip = cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(WIDTH, 2, 4, image_size=side, patch_size=4, max_length=8),
            tokenizer=TokenizerConfig(vocab_size=300, sample=2_000),
        ),
        data=data,
        batch_size=128,
        steps=150,
        optimizer=cosine_decay(2e-3, 25, 0.98),
        log_every=50,
        save_every=75,
    )
    task = ClassToImageConfig(
        classes=classes,
        label=LabelConfig(width=WIDTH, adapter_width=WIDTH, channels=32, side=2, groups=8),
        unet=small_unet(side, WIDTH),
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=WIDTH),
        diffusion=DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=25, guidance_scale=3.0, threshold="static"),
        preview=PreviewConfig(every=1000, prompts=classes[:9], num_steps=10),
        diagnose_every=1000,
    )
    base = cfg.RunConfig(
        task=task,
        data=data,
        batch_size=16,
        steps=steps,
        optimizer=cosine_decay(4e-3, 100, 0.99),
        save_every=500,
    )
    return {"clip": clip, "base": base}


def _short(config: cfg.Config) -> cfg.Config:
    """A few steps, for the tests."""
    samples = cfg.SamplesConfig(prompts=(SCENES[0], "", SCENES[7]), batch_size=2)
    return dataclasses.replace(cfg.few_steps(config), samples=samples)

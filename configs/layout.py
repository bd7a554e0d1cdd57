"""Pictures of a layout, boxes with classes: COCO's things at 64x64, sized for one GPU or TPU host.

  tfds build coco/2017 --file_format=array_record
  python -m contextdiff_jax.main --config=configs/layout.py --workdir=runs/layout

Presets for a laptop: layout.py:scenes is the 40 combinations of colour and shape of rendered scenes
at 16x16, whose boxes are exact, without any download; layout.py:folder is a folder of photographs
with boxes of COCO's things, or of those in --config.runs.base.task.classes, in the column "objects"
(--config.data_path=PATH); layout.py:maps is a folder with segmentation maps instead, named in the
column "mask", of CamVid's 12 classes. layout.py:latent is latent diffusion's OpenImages model, from
the folder of its single file (docs/layout.md). layout.py:test is a few steps of scenes.

The adapter needs an image encoder: the pipeline trains a CLIP on the data's captions, or the names
of its boxes, first. Without the adapter: --config.use_adapter=False.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.layout import LayoutConfig
from contextdiff_jax.conditions.layout_networks import MapConfig
from contextdiff_jax.data.boxes import line_of
from contextdiff_jax.data.config import COLOURS, SHAPES, DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import boxes, make_scene
from contextdiff_jax.encoders.config import equal_towers
from contextdiff_jax.networks.config import UNetConfig, small_adapter, small_unet
from contextdiff_jax.networks.latent_config import ldm_layout
from contextdiff_jax.sampling.config import SamplerConfig, published_ddim
from contextdiff_jax.tasks.contrastive import ContrastiveConfig, TokenizerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig, PreviewConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_layout_to_image import LatentLayoutToImageConfig
from contextdiff_jax.tasks.layout_to_image import LayoutToImageConfig
from contextdiff_jax.tasks.segmentation_to_image import SegmentationToImageConfig
from contextdiff_jax.training.optimizer import cosine_decay

PRESETS = ("", "scenes", "folder", "maps", "latent", "test")

COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog"),
    *("horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella"),
    *("handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite"),
    *("baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle"),
    *("wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
PHOTOGRAPHS = (
    "person 0.3 0.2 0.7 1; dog 0.65 0.6 1 1",
    "car 0.1 0.5 0.6 0.9; car 0.55 0.45 0.9 0.8",
    "cat 0.2 0.3 0.8 0.9",
    "person 0 0.3 0.3 1; person 0.35 0.3 0.65 1; person 0.7 0.3 1 1",
)
SCENES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

WIDTH = 64  # of the encoder and of what is learned of a layout, in the small presets


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    config = {"": _coco, "folder": _folder, "maps": _maps, "latent": _latent}.get(preset, _scenes)()
    return cfg.to_config_dict(_short(config) if preset == "test" else config)


def _config(name: str, drawn: tuple[str, ...], runs: dict[str, cfg.RunConfig]) -> cfg.Config:
    """The last picture is of a layout without objects."""
    samples = cfg.SamplesConfig(prompts=(*drawn, ";"))
    return cfg.Config(f"layout_{name}", pipeline=("clip", "base"), runs=runs, samples=samples)


def _coco() -> cfg.Config:
    width = 256
    data = DataConfig(source="tfds", path="coco/2017", resolution=64, boxes_field="objects")
    clip = cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(width, 4, 8, image_size=64, patch_size=8, max_length=64),
            tokenizer=TokenizerConfig(vocab_size=1000, sample=5_000),
        ),
        data=data,
        batch_size=256,
        steps=5000,
        optimizer=cosine_decay(1e-3, 50, 0.98),
    )
    task = LayoutToImageConfig(
        classes=COCO,
        layout=LayoutConfig(width=512, adapter_width=width),
        unet=UNetConfig(
            width=128,
            multipliers=(1, 2, 3, 4),
            num_blocks=2,
            attention_levels=(2, 3),
            text_dim=512,
            text_width=None,
        ),
        adapter=small_adapter(256, 4, patch_size=8, encoder_width=width),
        diffusion=DiffusionConfig(prediction="v", loss_weight="snr_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=50, guidance_scale=2.0, threshold="static"),
        preview=PreviewConfig(every=5000, prompts=PHOTOGRAPHS),
        diagnose_every=5000,
    )
    base = cfg.RunConfig(
        task=task,
        data=dataclasses.replace(data, flip=True),
        batch_size=128,
        steps=200_000,
        optimizer=dataclasses.replace(cosine_decay(1e-4, 5000, 0.9999), decay="constant"),
        save_every=5000,
    )
    return _config("coco", PHOTOGRAPHS, {"clip": clip, "base": base})


def _folder() -> cfg.Config:
    """Whatever the classes are: the preview shows the first data's layouts."""
    data = DataConfig(source="folder", resolution=32, boxes_field="objects", flip=True)
    return _config("folder", (), _small_runs(data, COCO, (), 30, steps=5000))


def _maps() -> cfg.Config:
    """No pictures at the end: a request names the file of a map. The preview shows the first data.

    What is learned of maps has the sizes of that of boxes.
    """
    data = DataConfig(source="folder", resolution=32, flip=True)
    runs = _small_runs(data, ("unread",), (), 1, steps=5000)
    base = runs["base"].task
    sizes = {f.name: getattr(base.layout, f.name) for f in dataclasses.fields(MapConfig)}
    task = SegmentationToImageConfig(
        labels=tuple(range(12)),
        segmentation=MapConfig(**sizes),
        **{
            name: getattr(base, name)
            for name in ("unet", "adapter", "diffusion", "sampler", "preview", "diagnose_every")
        },
    )
    runs["base"] = dataclasses.replace(
        runs["base"], task=task, data=dataclasses.replace(data, mask_field="mask")
    )
    return cfg.Config("layout_maps", pipeline=("clip", "base"), runs=runs)


def _latent() -> cfg.Config:
    """layout2img-openimages256 (Rombach et al. 2022). Its file numbers classes and names none."""
    base = cfg.RunConfig(
        task=LatentLayoutToImageConfig(
            classes=tuple(f"class {number}" for number in range(601)),
            layout=LayoutConfig(tokens="ldm", map=False, layers=16, listed=True),
            latent_unet=dataclasses.replace(ldm_layout(), remat="blocks"),
            first_stage=FirstStageRef("layout2img-openimages256"),
            diffusion=DiffusionConfig(
                schedule="scaled_linear",
                betas=(0.0015, 0.0205),
                prediction="eps",
                loss_weight="snr",
            ),
            # It was never trained without a layout: nothing to lead away from.
            sampler=published_ddim(50, 1.0),
        ),
        data=DataConfig(source="folder", resolution=256, boxes_field="objects", flip=True),
        batch_size=64,
        steps=10_000,
        optimizer=cosine_decay(3e-5, 500, 0.9995),
        start_from=cfg.WarmStartConfig("layout2img-openimages256"),
    )
    return cfg.Config(
        name="layout_latent", pipeline=("base",), runs={"base": base}, use_adapter=False
    )


def _scenes() -> cfg.Config:
    scenes = ScenesConfig(pairs=0.5)
    data = DataConfig(source="scenes", resolution=16, scenes=scenes)
    drawn = tuple(line_of(boxes(make_scene(scenes, "test", index))) for index in range(15))
    return _config("scenes", drawn, _small_runs(data, SCENES, drawn, 4, steps=2500))


def _small_runs(
    data: DataConfig, classes: tuple[str, ...], drawn: tuple[str, ...], objects: int, steps: int
) -> dict[str, cfg.RunConfig]:
    """A CLIP and a base for two CPU cores."""
    side = data.resolution
    clip = cfg.RunConfig(
        task=ContrastiveConfig(
            clip=equal_towers(WIDTH, 2, 4, image_size=side, patch_size=4, max_length=24),
            tokenizer=TokenizerConfig(vocab_size=512, sample=2_000),
        ),
        data=data,
        batch_size=128,
        steps=150,
        optimizer=cosine_decay(2e-3, 25, 0.98),
        log_every=50,
        save_every=75,
    )
    task = LayoutToImageConfig(
        classes=classes,
        layout=LayoutConfig(
            objects=objects,
            width=WIDTH,
            layers=1,
            heads=4,
            painted=32,
            adapter_width=WIDTH,
            grid=16,
            channels=16,
            groups=8,
        ),
        unet=small_unet(side, WIDTH),
        adapter=small_adapter(64, 2, patch_size=4, encoder_width=WIDTH),
        diffusion=DiffusionConfig(prediction="x0", loss_weight="min_snr_5_plus_1"),
        sampler=SamplerConfig(name="ddim", num_steps=25, guidance_scale=2.0, threshold="static"),
        preview=PreviewConfig(every=1000, prompts=drawn[:9], num_steps=10),
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
    samples = cfg.SamplesConfig(prompts=(*config.samples.prompts[:2], ";"), batch_size=2)
    return dataclasses.replace(cfg.few_steps(config), samples=samples)

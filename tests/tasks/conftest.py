"""A tiny CLIP folder with random weights, as every diffusion task needs one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax import config as cfg
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.clip import CLIP, CLIPConfig
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.encoders.weights import save_clip_folder
from contextdiff_jax.networks.config import AdapterConfig, EfficientUNetConfig, UNetConfig
from contextdiff_jax.runs.build import LoadedEncoders, build_task, locate_in
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.super_resolution import SuperResolutionConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig

WIDTH = 16
CAPTIONS = ("a red circle", "a blue square", "two green birds", "nothing at all")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_tokenizer(CAPTIONS, 300, 12, folder / "tokenizer")
    config = CLIPConfig(
        text_width=WIDTH,
        text_layers=1,
        text_heads=2,
        vocab_size=tokenizer.vocab_size,
        max_length=12,
        vision_width=WIDTH,
        vision_layers=1,
        vision_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
        eot_token_id=tokenizer.eot_token_id,
    )
    ids, pixels = jnp.zeros((1, 12), jnp.int32), jnp.zeros((1, 16, 16, 3))
    params = CLIP(config).init(jax.random.key(7), ids, pixels)["params"]
    save_clip_folder(folder, config, nn.unbox(params))
    return folder


@pytest.fixture(scope="session")
def make_config(clip_folder):
    """Returns make(use_adapter, **diffusion settings) -> Config with runs base and sr."""

    def make(use_adapter=True, **diffusion):
        settings = {"num_steps": 50, "prediction": "v", "loss_weight": "x0"} | diffusion
        shared = {
            "adapter": AdapterConfig(
                patch_size=8,
                width=16,
                num_blocks=1,
                heads=2,
                time_width=16,
                image_dim=WIDTH,
                text_dim=WIDTH,
            ),
            "diffusion": DiffusionConfig(**settings),
            "sampler": SamplerConfig(name="ddim", num_steps=3, threshold="static"),
        }
        base = TextToImageConfig(
            unet=UNetConfig(
                width=8,
                multipliers=(1, 2),
                num_blocks=1,
                attention_levels=(1,),
                head_dim=8,
                groups=4,
                text_dim=WIDTH,
                text_width=None,
                scan_blocks=False,
            ),
            **shared,
        )
        sr = SuperResolutionConfig(
            low_resolution=16,
            efficient_unet=EfficientUNetConfig(
                channels=(8, 16),
                num_blocks=(1, 1),
                strides=(2, 2),
                attention_levels=(1,),
                heads=2,
                groups=4,
                text_dim=WIDTH,
                scan_blocks=False,
            ),
            **shared,
        )
        ref = cfg.EncoderRef(path=str(clip_folder))
        return cfg.Config(
            name="test",
            runs={
                name: cfg.RunConfig(task, DataConfig(resolution=side), batch_size=4, steps=2)
                for name, task, side in (("base", base, 16), ("sr", sr, 32))
            },
            pipeline=("base", "sr"),
            use_adapter=use_adapter,
            encoders=cfg.EncodersConfig(text=ref, clip=ref),
        )

    return make


def build_loaded(config, stage):
    """Returns the task of a run, its encoders loaded."""
    return build_task(config, stage, LoadedEncoders(config, locate_in("unused")))


@pytest.fixture(scope="session")
def make_task(make_config):
    """Returns make(stage, use_adapter, **diffusion settings) -> task."""

    def make(stage="base", use_adapter=True, **diffusion):
        config = make_config(use_adapter, **diffusion)
        return build_loaded(config, stage)

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Returns make(task, captions) -> a batch with random uint8 images."""

    def make(task, captions=CAPTIONS):
        rng = np.random.default_rng(0)
        side = task.resolution
        images = rng.integers(0, 256, (len(captions), side, side, 3), dtype=np.uint8)
        return {"image": images} | task.collate(captions)

    return make


@pytest.fixture(scope="session")
def awake():
    """Returns awake(task): parameters moved off their zero initialisation."""

    def make(task, seed=0):
        params = nn.unbox(task.init(jax.random.key(seed)))
        leaves, tree = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        moved = [
            leaf + 0.1 * jax.random.normal(key, leaf.shape)
            for leaf, key in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(tree, moved)

    return make


@dataclasses.dataclass(frozen=True)
class KnowsTheImage:
    """Stands in for a denoiser: the exact v' of one known image, or zeros."""

    image: float
    schedule: object
    zero: bool = False

    def init(self, key, *args, **kwargs):
        return {"params": {}}

    def apply(self, params, x_t, t, **kwargs):
        if self.zero:
            return jnp.zeros_like(x_t)
        # v' = (sqrt(ab) x_t - x0) / sqrt(1 - ab), from the definitions of eps' and v'.
        alpha_bar = jnp.asarray(self.schedule.alpha_bar, jnp.float32)[t.astype(jnp.int32)]
        alpha_bar = alpha_bar[:, None, None, None]
        return (jnp.sqrt(alpha_bar) * x_t - self.image) / jnp.sqrt(1 - alpha_bar)


@pytest.fixture
def knows_the_image():
    return KnowsTheImage

"""Editing a clip with Stable Diffusion, without and with tuning on it: docs/video.md.

  python -m contextdiff_jax.edit --config=configs/video_editing.py:fatezero --model=FOLDER ...

Methods: per_frame inverts and edits every frame by itself; fatezero (the default) takes attention
over from the source, without tuning; tune_a_video tunes the inflated U-Net on the clip first, and
fatezero_tuned and contextdiff take over attention as well; contextdiff has the context-aware
adapter, for which --image_encoder gives a CLIP; controlvideo follows edges, depth or poses
(--control) by a ControlNet (--controlnet), controlvideo_adapter with the adapter too.
"""

import dataclasses

from contextdiff_jax import config as cfg
from contextdiff_jax.data.clips import ClipConfig
from contextdiff_jax.generation.editing_config import (
    EditingConfig,
    FusionConfig,
    TuningConfig,
    editing_config_dict,
)
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig, control_video, tune_a_video

PRESETS = ("", "per_frame", "fatezero", "tune_a_video", "fatezero_tuned", "contextdiff")
PRESETS += ("controlvideo", "controlvideo_adapter")


def get_config(preset: str = ""):
    cfg.check_preset(preset, PRESETS)
    return editing_config_dict({"": _fatezero}.get(preset, globals().get(f"_{preset}"))())


def _per_frame() -> EditingConfig:
    return EditingConfig("per_frame")


def _fatezero() -> EditingConfig:
    """Without tuning: keys of the frame in the middle, in blocks of 640 channels and more."""
    video = VideoConfig(keys_from=("mid",), least_width=640, temporal=None)
    return EditingConfig("fatezero", video=video, fusion=FusionConfig())


def _tune_a_video() -> EditingConfig:
    return EditingConfig(
        "tune_a_video",
        clip=ClipConfig(count=24, stride=2),
        video=tune_a_video(),
        tuning=TuningConfig(steps=500),
        guidance_scale=12.5,
        invert_prompt="none",
    )


def _fatezero_tuned() -> EditingConfig:
    """Edits of shape: a network tuned on the clip, whose attention is taken over."""
    return EditingConfig(
        "fatezero_tuned",
        video=VideoConfig(temporal_conv="lora"),
        tuning=TuningConfig(
            steps=200,
            learning_rate=1e-5,
            trainable=("**/query", "**/temporal", "**/conv*_temporal", "**/head_temporal"),
        ),
        fusion=FusionConfig(),
    )


def _contextdiff() -> EditingConfig:
    """As the paper: the adapter tuned beside, 20 steps, the bias in inversion and drawing."""
    config = _fatezero_tuned()
    trainable = (*config.tuning.trainable, "adapter")
    return dataclasses.replace(
        config,
        name="contextdiff",
        clip=ClipConfig(stride=2),
        tuning=dataclasses.replace(config.tuning, trainable=trainable),
        num_steps=20,
        adapter=AdapterConfig(patch_size=4),
    )


def _controlvideo() -> EditingConfig:
    """300 steps are for soft edges; the authors take 80 for Canny's, 500 for depth, 1500 for
    poses."""
    return EditingConfig(
        "controlvideo",
        video=control_video(),
        tuning=TuningConfig(
            steps=300,
            learning_rate=3e-5,
            trainable=("**/self/out", "**/temporal", "**/temporal_out"),
        ),
        guidance_scale=12.0,
        control_scale=1.0,
    )


def _controlvideo_adapter() -> EditingConfig:
    config = _controlvideo()
    trainable = (*config.tuning.trainable, "adapter")
    return dataclasses.replace(
        config,
        name="controlvideo_adapter",
        tuning=dataclasses.replace(config.tuning, trainable=trainable),
        adapter=AdapterConfig(patch_size=4),
    )

"""The programs of an edit, lowered from shapes alone: what they hold, and on which devices."""

import dataclasses
import math

import jax
import pytest

from configs import video_editing
from contextdiff_jax.compilation.lower_edit import MODELS, lower_edit
from contextdiff_jax.encoders.latent_weights import abstract_unet
from contextdiff_jax.generation.editing_config import read_editing_config
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.training.parameter_names import by_name, matches

SIDE, FRAMES, STEPS = 64, 8, 3  # 8 x 8 latents


def config_of(preset):
    config = read_editing_config(video_editing.get_config(preset))
    clip = dataclasses.replace(config.clip, count=FRAMES)
    return dataclasses.replace(config, clip=clip, num_steps=STEPS, height=SIDE, width=SIDE)


def sizes_of(config):
    shapes = by_name(abstract_unet(MODELS["tiny"].unet, config.inflation))
    return {f"denoiser/{name}": math.prod(leaf.shape) for name, leaf in shapes.items()}


def test_a_tuning_step_trains_what_the_patterns_name_over_all_devices():
    config = config_of("tune_a_video")
    program = lower_edit(config, "tiny", "train", make_mesh(MeshConfig()))
    sizes = sizes_of(config)
    trained = sum(size for name, size in sizes.items() if matches(name, config.tuning.trainable))
    assert 0 < trained < sum(sizes.values())
    assert program.parameters == trained
    # Parameters, EMA, two moments; the other weights once, the clip's latents and the prompt.
    latents, prompt, scalars = FRAMES * 8 * 8 * 4, 77 * 768, 5
    inputs = sum(math.prod(each.shape) for each in jax.tree.leaves(program.lowered.in_avals))
    rest = sum(sizes.values()) - trained
    assert 0 <= inputs - 4 * trained - rest - latents - prompt <= scalars
    assert "num_partitions = 8" in program.lowered.as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "what"),
    [
        ("fatezero", "sample"),
        ("fatezero", "invert"),
        ("contextdiff", "train"),
        ("controlvideo_adapter", "sample"),
    ],
)
def test_every_program_lowers(preset, what):
    config = config_of(preset)
    program = lower_edit(config, "tiny", what, make_mesh(MeshConfig()))
    assert program.parameters > 0 and program.model_flops > 0
    assert "num_partitions = 8" in program.lowered.as_text()


def test_what_cannot_be_is_refused():
    mesh = make_mesh(MeshConfig())
    fatezero = config_of("fatezero")
    clip = dataclasses.replace(fatezero.clip, count=6)
    for config, what, sentence in (
        (fatezero, "train", "--what=train: must be invert or sample where config.tuning.steps = 0"),
        (dataclasses.replace(fatezero, clip=clip), "sample", "config.clip.count = 6: must be a"),
        (
            dataclasses.replace(fatezero, height=60),
            "sample",
            "config.height = 60: must be a multiple of 8",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            lower_edit(config, "tiny", what, mesh)

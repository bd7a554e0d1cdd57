"""Agreement on rendered pictures, whose truth is known."""

import numpy as np
import pytest

from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.scenes import ScenesSource
from contextdiff_jax.evaluation import prompt_following


def test_true_pictures_agree_and_shuffled_ones_do_not():
    scenes = ScenesConfig()
    prompts = prompt_following.held_out_prompts(scenes, 60)
    source = ScenesSource(DataConfig(source="scenes", split="test", resolution=32, scenes=scenes))
    pictures = np.stack([source[index].image for index in range(60)])
    right = prompt_following.agreement(pictures, prompts).shares
    chance = prompt_following.agreement(pictures, prompt_following.shuffled(prompts)).shares
    assert right["colour_and_shape"] > 0.97 and right["all"] > 0.95
    assert chance["colour_and_shape"] < 0.15


def test_shuffling_moves_every_prompt():
    prompts = [str(number) for number in range(50)]
    moved = prompt_following.shuffled(prompts)
    assert sorted(moved) == sorted(prompts)
    assert not any(a == b for a, b in zip(moved, prompts, strict=True))


def test_as_many_pictures_as_prompts():
    with pytest.raises(ValueError, match="1 pictures for 2 prompts"):
        prompt_following.agreement(np.zeros((1, 16, 16, 3), np.uint8), ["a red circle"] * 2)

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


def test_pictures_of_one_and_of_two_objects_are_counted_apart():
    """All pairs are drawn the wrong way round, all else is right."""
    scenes = ScenesConfig(pairs=0.5)
    prompts = prompt_following.held_out_prompts(scenes, 40)
    source = ScenesSource(DataConfig(source="scenes", split="test", resolution=32, scenes=scenes))
    pairs = np.array([len(source.scene(index).things) == 2 for index in range(40)])
    pictures = np.stack([source[index].image for index in range(40)])
    pictures[pairs] = pictures[pairs, ::-1, ::-1]
    found = prompt_following.by_objects(pictures, prompts)
    assert [found[name].count for name in found] == [40, 40 - pairs.sum(), pairs.sum()]
    assert found["one_object"].shares["all"] > 0.9
    assert found["two_objects"].shares["all"] == found["two_objects"].shares["position"] == 0
    mean = np.average(
        [found["one_object"].shares["all"], 0], weights=[40 - pairs.sum(), pairs.sum()]
    )
    assert found["prompts"].shares["all"] == pytest.approx(mean)


def test_prompts_of_one_kind_have_no_parts():
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    assert list(prompt_following.by_objects(pictures, ["a red circle"] * 2)) == ["prompts"]


def test_shuffling_moves_every_prompt():
    prompts = [str(number) for number in range(50)]
    moved = prompt_following.shuffled(prompts)
    assert sorted(moved) == sorted(prompts)
    assert not any(a == b for a, b in zip(moved, prompts, strict=True))


@pytest.mark.parametrize("of", [prompt_following.agreement, prompt_following.by_objects])
def test_as_many_pictures_as_prompts(of):
    with pytest.raises(ValueError, match="1 pictures for 2 prompts"):
        of(np.zeros((1, 16, 16, 3), np.uint8), ["a red circle"] * 2)

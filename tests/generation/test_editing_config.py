"""The config of an edit, and what becomes of its words: positions, steps, refusals."""

import importlib

import numpy as np
import pytest

from contextdiff_jax.config import ConfigError
from contextdiff_jax.encoders.tokenizers import load_tokenizer
from contextdiff_jax.generation.editing_config import (
    FusionConfig,
    editing_config_dict,
    read_editing_config,
)
from contextdiff_jax.generation.prompt_edit import prompt_edit, words_of

SOURCE, TARGET = "a red circle", "a circle of red"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("diffusers", reason="the module of the folder's tokenizer imports it")
    from tests.generation import stable_diffusion_folder

    folder = tmp_path_factory.mktemp("words") / "tokenizer"
    stable_diffusion_folder.words(folder, "<|endoftext|>")
    return load_tokenizer(folder)


def test_positions_of_words(tokenizer):
    words = words_of(tokenizer, "A red, circle")
    assert words.words == ("A", "red,", "circle")
    # A; red in one token, then the comma; c-i-r-c-l-e in "ci", "rc", "l", "e".
    lengths = [len(places) for places in words.positions]
    assert sum(lengths) == len(words.ids) - 2
    assert [places[0] for places in words.positions] == [1, 1 + lengths[0], 1 + sum(lengths[:2])]
    assert words.tokens("RED", "key") == list(words.positions[1])
    assert words.tokens("red circle", "key") == [*words.positions[1], *words.positions[2]]
    with pytest.raises(
        ValueError, match="key has 'blue', which is not in .*: must be one of a, red, "
    ):
        words.tokens("blue", "key")


def test_words_that_are_cut_off_are_said(tokenizer):
    words = words_of(tokenizer, "red " * 90 + "blue")
    assert len(words.words) == 75 and words.cut[-1] == "blue"
    with pytest.raises(ValueError, match="key has 'blue', which is cut off: .* first 75 words"):
        words.tokens("blue", "key")


@pytest.mark.parametrize(
    "words",
    [
        {"cross_words": ("square",), "cross_words_until": (0.5,)},
        {"equalizer_words": ("square",), "equalizer_values": (2.0,)},
        {"blend_edit_words": ("square",)},
    ],
)
def test_words_that_the_edit_does_not_have_are_refused(words, tokenizer):
    with pytest.raises(ValueError, match=f"fusion.{next(iter(words))} has 'square', which is not"):
        prompt_edit(tokenizer, SOURCE, TARGET, FusionConfig(**words), 10)


def test_steps_and_words_of_a_fusion(tokenizer):
    config = FusionConfig(
        cross_until=0.5,
        cross_words=("red",),
        cross_words_until=(0.8,),
        self_from=0.1,
        self_until=0.6,
        equalizer_words=("circle",),
        equalizer_values=(2.0,),
    )
    found = prompt_edit(tokenizer, SOURCE, TARGET, config, 10)
    words = words_of(tokenizer, TARGET)
    red, circle = (words.tokens(word, "") for word in ("red", "circle"))
    assert len(found.weight) == config.fused_steps(10) == 8
    # floor(share * (T + 1)) steps for cross-attention, floor(share * T) for self-attention.
    assert found.weight[:, red[0]].tolist() == [1] * 8
    assert found.weight[:, circle[0]].tolist() == [1] * 5 + [0] * 3
    assert found.self_on.tolist() == [False] + [True] * 5 + [False] * 2
    assert np.flatnonzero(found.equalizer != 1).tolist() == circle


def test_replace_needs_as_many_words(tokenizer):
    config = FusionConfig(mode="replace")
    with pytest.raises(ValueError, match="have 3 and 4 words, must have equally many; or use 'ref"):
        prompt_edit(tokenizer, SOURCE, TARGET, config, 10)
    same = prompt_edit(tokenizer, SOURCE, SOURCE, config, 10)
    np.testing.assert_array_equal(same.projection, np.eye(77))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fusion": {"cross_until": 1.5}}, r"fusion.cross_until = 1.5: must be in 0..1"),
        ({"fusion": {"self_from": 0.9}}, r"fusion.self_from = 0.9: must be at most self_until"),
        ({"fusion": {"cross_words": ("a",)}}, r"fusion.cross_words_until has 0 numbers: must be 1"),
        ({"fusion": {"blend_latents": True}}, r"blend_latents = True: must be False without"),
        ({"clip": {"count": 1}, "video": {}}, r"clip.count = 1: must be at least 2 with temporal"),
        ({"tuning": {"steps": 5}}, r"tuning.steps = 5: must be 0 without video"),
        ({"video": {"keys_from": ("middle",)}}, r"video.keys_from has 'middle'"),
        ({"heatmaps": (" ",)}, r"heatmaps has ' ': must be words"),
        ({"heatmap_reduction": 0}, r"heatmap_reduction = 0: must be at least 1"),
        (
            {"heatmaps": ("a",), "heatmap_reduction": 2, "fusion": {"blend_words": ("a",)}},
            r"heatmap_reduction = 2: must be config.fusion.mask_reduction, 4",
        ),
        ({"num_steps": 0}, r"num_steps = 0: must be 1 to 1000"),
        ({"invert_from": 1.0}, r"invert_from = 1.0: must be in 0..1"),
        ({"fusions": None}, r"config.fusions = None: unknown key.*fusion\?"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_editing_config({"name": "test"} | changes)


@pytest.mark.parametrize("preset", importlib.import_module("configs.video_editing").PRESETS)
def test_the_configs_of_the_methods_are_read(preset):
    module = importlib.import_module("configs.video_editing")
    config = read_editing_config(module.get_config(preset))
    assert config.name == (preset or "fatezero")
    assert read_editing_config(editing_config_dict(config)) == config

"""Words to tokens to maps over pictures; the tokenizer is one trained here."""

import types

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.conditions.context_images import ContextImages
from contextdiff_jax.conditions.query_image import QueryImage
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.evaluation import heatmaps
from contextdiff_jax.evaluation.attention_maps import plan_heatmaps

PROMPT = "A red circle, left of a redder Circle"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["a red circle"] * 3, 262, 40, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("word", "covered"),
    [
        ("red", ["red"]),
        ("circle", ["circle", "Circle"]),
        ("left of", ["left", "of"]),
        ("redder", ["redder"]),
        ("edd", []),
        ("blue", []),
    ],
)
def test_a_word_is_the_tokens_of_its_letters(word, covered, tokenizer):
    """Of a tokenizer that knows few merges, so that words are several tokens."""
    spans = tokenizer.spans(PROMPT)
    places = heatmaps.word_tokens(PROMPT, word, spans)
    letters = "".join(PROMPT[spans[place][0] : spans[place][1]] for place in places)
    assert letters.replace(" ", "") == "".join(covered).replace(" ", "")
    if covered:
        assert len(places) > len(covered)


def test_words_cut_off_have_no_tokens(tokenizer):
    long = "x " * 60 + "red"
    assert heatmaps.word_tokens(long, "red", tokenizer.spans(long)) == []
    # The token at the cut gives its place to the end token.
    most = tokenizer.max_length
    cut = [f"{'x ' * n}zzz" for n in range(most)]
    cut = [text for text in cut if tokenizer.cut_words(text) == ["zzz"]]
    assert cut
    for text in cut:
        spans = tokenizer.spans(text)
        assert len(spans) == most and spans[-1] == (0, 0)


def test_the_words_worth_showing():
    assert heatmaps.words_of("a red circle left of a red cross") == [
        "red",
        "circle",
        "left",
        "cross",
    ]
    assert heatmaps.words_of("a b") == ["a", "b"]


def test_the_heat_lies_where_the_attention_is(tmp_path):
    maps = np.zeros((4, 4, 3), np.float32)
    maps[..., 0] = 1.0
    maps[0, 3] = (0.1, 0.4, 0.5)  # top right
    found = heatmaps.word_map(maps, [1, 2])
    assert found[0, 3] == pytest.approx(0.9) and found.sum() == pytest.approx(0.9)
    heatmaps.draw(np.full((16, 16, 3), 128, np.uint8), {"word": found}, tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(float)
    half = picture[:, picture.shape[1] // 2 :]
    # Inferno: the largest is yellow, the least black; white margins and grey pictures are neither.
    rows, columns = np.nonzero(half[..., 0] - half[..., 2] > 60)
    assert len(rows) > 100
    assert rows.mean() < 0.4 * half.shape[0] and columns.mean() > 0.6 * half.shape[1]


def test_prompts_alone_are_refused_where_pictures_need_more():
    conditions = (Text, ContextImages(2, side=1), QueryImage)
    settings = types.SimpleNamespace(prompts=("a red circle",), images=("a.png",), words=())
    cascade = types.SimpleNamespace(conditions=conditions, stages=[None])
    with pytest.raises(ValueError, match="prompt 1 lacks 'context': must name text and context"):
        plan_heatmaps(types.SimpleNamespace(settings=settings, cascade=cascade))

"""Choosing captions and the data they are from."""

import pytest

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation import captions


class Numbered:
    """Sample i has the captions "i a" and "i b"; every fifth is damaged."""

    name = "numbered"

    def __len__(self):
        return 50

    def captions(self, index):
        if index % 5 == 0:
            raise DamagedSample(str(index), "no usable caption: blank")
        return (f"{index} a", f"{index} b")


def test_one_random_caption_of_each_of_different_sound_samples():
    drawn = captions.draw_captions(Numbered(), 40, seed=3)
    numbers = [int(text.split()[0]) for text in drawn]
    assert sorted(numbers) == [i for i in range(50) if i % 5]
    assert numbers != sorted(numbers)
    assert 8 < sum(text.endswith("a") for text in drawn) < 32
    assert captions.draw_captions(Numbered(), 20, seed=3) == drawn[:20]
    assert captions.draw_captions(Numbered(), 20, seed=4) != drawn[:20]
    with pytest.raises(ValueError, match="--count=41: numbered has 40 captioned samples"):
        captions.draw_captions(Numbered(), 41, seed=0)


def test_a_few_of_two_thousand_million_scenes():
    source = open_source(DataConfig(source="scenes", split="test"))
    assert len(set(captions.draw_captions(source, 30, seed=0))) > 15


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no such file"),
        ("", "holds no caption"),
        (" \n\n", "holds no caption"),
        ("a\n \nb\n", "line 2 is blank"),
    ],
)
def test_caption_files_without_captions_are_refused(text, sentence, tmp_path):
    path = tmp_path / "captions.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        captions.read_captions(path)


def test_captions_of_a_file_keep_their_order(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("".join(f" {n} \n" for n in range(30)))
    read = captions.read_captions(path)
    assert read == [str(n) for n in range(30)]
    chosen = captions.choose(read, 12, seed=0)
    assert len(set(chosen)) == 12 and chosen == sorted(chosen, key=int)
    with pytest.raises(ValueError, match="--count=31: there are 30 captions"):
        captions.choose(read, 31, seed=0)


def test_settings_go_on_top_of_the_training_data():
    base = DataConfig(source="folder", path="a", split="train", caption_fields=("x",), flip=True)
    changed = captions.data_settings(base, ["split=val", "limit=5"], "data")
    assert (changed.path, changed.split, changed.limit, changed.flip) == ("a", "val", 5, False)
    assert changed.caption_fields == ("x",)
    moved = captions.data_settings(base, ["path=2017"], "data")
    assert (moved.source, moved.path, moved.caption_fields) == ("folder", "2017", ())


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("split", "must be field=value"),
        ("spilt=val", "field one of source, path"),
        ("source=coco", "data.source = 'coco': must be one of scenes"),
        ("limit=few", "data.limit = 'few': must be int"),
        ("source=folder", "path is empty"),
    ],
)
def test_unreadable_settings(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        captions.data_settings(DataConfig(), [setting], "data")

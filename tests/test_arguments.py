"""Lines of text files, seeds, and the nearest right word."""

import jax
import numpy as np
import pytest

from contextdiff_jax import arguments
from contextdiff_jax.evaluation.captions import read_captions
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.seeds import LARGEST_SEED
from contextdiff_jax.system.suggestions import nearest, nearest_path
from contextdiff_jax.training.random import stream_key

LINES = ["a red circle", "", "a\u2028b\u2029c\x85d", "e\x0cf\x0bg\x1ch\x1d\x1e", "i\rj", " k "]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_at_line_feeds_alone(end, last, mark, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(mark + (end.join(LINES) + end * last).encode())
    assert arguments.read_lines(file, "prompts") == LINES


def test_a_caption_keeps_its_place_whatever_characters_it_has(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("one\ntwo\u2028still two\n\x0cthree\n", encoding="utf-8")
    assert read_captions(file) == ["one", "two\u2028still two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("folder", None, "--prompts=.*folder: is a folder, must be a file"),
        ("prompt.txt", None, r"no such file; did you mean .*/prompts\.txt\?"),
        ("bytes.txt", b"a\nb\n\xff", "line 3 is no UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, sentence, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "prompts.txt").write_text("a")
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        arguments.read_lines(tmp_path / name, "prompts")


def test_the_nearest_path_mends_every_part(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert nearest_path("config/quikstart.py") == "; did you mean configs/quickstart.py?"
    assert nearest_path(tmp_path / "configs/quickstart") == (
        f"; did you mean {tmp_path}/configs/quickstart.py?"
    )
    assert nearest_path("configs/zebra.tar") == nearest_path("gs://bucket/x") == ""
    assert nearest("bsae", ["clip", "base"], "--run=") == "; did you mean --run=base?"
    assert nearest("zebra", ["clip", "base"]) == ""


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_no_two_seeds_are_one_and_others_are_refused():
    seeds = (0, 1, 2**31 - 1, 2**31, LARGEST_SEED)
    for keys in (lambda s: sample_keys(s, np.arange(2)), lambda s: stream_key(s, "train")):
        drawn = {bits(keys(seed)).tobytes() for seed in seeds}
        assert len(drawn) == len(seeds)
        for seed in (-1, 2**32, 2**63 - 1, -(2**32)):
            with pytest.raises(ValueError, match=rf"seed = {seed}: must be a seed in 0\.\."):
                keys(seed)


def test_seeds_draw_what_they_drew():
    """Threefry of the seed's 32 bits, whose second word is the seed itself."""
    for seed in (0, 7, 2**32 - 1):
        key = jax.random.wrap_key_data(np.array([0, seed], np.uint32), impl="threefry2x32")
        expected = bits(jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(np.arange(3)))
        np.testing.assert_array_equal(bits(sample_keys(seed, np.arange(3))), expected)

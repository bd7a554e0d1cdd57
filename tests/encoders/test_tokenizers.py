"""Tokenizers: the published vocabularies, and ones trained on captions."""

import importlib.util
import json
import logging
import pickle
import shutil

import numpy as np
import pytest

from contextdiff_jax.encoders import tokenizers
from contextdiff_jax.encoders.tokenizers import load_tokenizer, train_tokenizer

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
HOUSE = [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1]
CAPTIONS = ["a red cat on a mat", "a blue dog on a mat", "two red dogs and a cat"] * 3


@pytest.fixture(scope="module")
def clip_files(shared_data):
    return shared_data("tokenizer/clip")


@pytest.fixture(scope="module")
def t5_files(shared_data):
    return shared_data("tokenizer/t5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_tokenizer(CAPTIONS, 300, 12, tmp_path_factory.mktemp("tokenizer"))


def test_clip_vocabulary(clip_files):
    tokenizer = load_tokenizer(clip_files)
    assert (tokenizer.max_length, tokenizer.vocab_size) == (77, 49408)
    assert (tokenizer.eot_token_id, tokenizer.pad_token_id) == (49407, 49407)
    ids, mask = tokenizer(["A photo  of\na cat", ""])
    assert (ids.dtype, mask.dtype, ids.shape) == (np.int32, bool, (2, 77))
    assert ids[0, :7].tolist() == CAT
    assert mask.sum(1).tolist() == [7, 2]
    assert ids[1, :2].tolist() == [49406, 49407]
    assert set(ids[0, 7:]) == {49407}


def test_t5_vocabulary(t5_files):
    tokenizer = load_tokenizer(t5_files, 16)
    assert (tokenizer.eot_token_id, tokenizer.pad_token_id) == (1, 0)
    ids, mask = tokenizer(["translate English to German: The house is wonderful.", ""])
    assert ids[0].tolist() == HOUSE + [0] * 5
    assert mask.sum(1).tolist() == [11, 1]
    assert ids[1].tolist() == [1] + [0] * 15


@pytest.mark.parametrize("kind", ["clip_files", "t5_files"])
def test_tokenizer_json_gives_the_same_ids(request, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    name = {"clip_files": "CLIPTokenizer", "t5_files": "T5Tokenizer"}[kind]
    files = request.getfixturevalue(kind)
    getattr(transformers, name).from_pretrained(files).save_pretrained(tmp_path)
    assert not {path.name for path in tmp_path.iterdir()} & {"vocab.json", "spiece.model"}
    text = ["A photo of NAÏVE cats' 12 things… <pad>"]
    one, other = load_tokenizer(files, 40), load_tokenizer(tmp_path, 40)
    np.testing.assert_array_equal(one(text)[0], other(text)[0])
    assert one.identity == other.identity


def test_a_long_prompt_keeps_its_end_and_names_what_it_lost(clip_files, caplog):
    tokenizer = load_tokenizer(clip_files, 6)
    text = "a photo of supercalifragilistic  cats\nasleep"
    ids, mask = tokenizer(["a cat", text], warn=True)
    assert ids[1, :4].tolist() == CAT[:4]
    assert ids[1, -1] == 49407
    assert mask[1].all()
    assert tokenizer.truncated == 1
    assert tokenizer.cut_words(text) == ["supercalifragilistic", "cats", "asleep"]
    assert tokenizer.cut_words("a cat") == []
    assert caplog.messages == ["prompt cut to 6 tokens; lost: supercalifragilistic cats asleep"]


def test_cuts_in_training_are_counted_and_not_logged(clip_files, caplog):
    tokenizer = load_tokenizer(clip_files, 6)
    tokenizer(["a photo of a black cat"] * 5)
    tokenizer(["a photo of a cat"])  # 7 tokens
    assert tokenizer.truncated == 6
    assert not caplog.records


def test_a_warning_names_a_limited_number_of_words(trained, caplog):
    with caplog.at_level(logging.WARNING):
        trained(["a " * 200], warn=True)
    assert caplog.messages[0].endswith(" ... and 140 more words")


def test_exactly_full_is_not_cut(clip_files):
    tokenizer = load_tokenizer(clip_files, 7)
    ids, mask = tokenizer(["a photo of a cat"])
    assert ids[0].tolist() == CAT
    assert mask.all()
    assert tokenizer.truncated == 0


@pytest.mark.parametrize("files", ["clip_files", "trained"])
def test_special_tokens_in_a_caption_are_plain_text(request, files):
    found = request.getfixturevalue(files)
    tokenizer = load_tokenizer(found, 20) if files == "clip_files" else found
    tokenizer = pickle.loads(pickle.dumps(tokenizer))  # as a data worker receives it
    ids, mask = tokenizer(["a <|endoftext|> b"])
    inside = ids[0, : mask.sum()]
    assert (inside == tokenizer.eot_token_id).sum() == 1


def test_trained_tokenizer_writes_every_text(trained):
    assert trained.vocab_size <= 300
    assert trained.max_length == 12
    assert trained.pad_token_id == 0
    assert trained.eot_token_id == trained.vocab_size - 1
    ids, mask = trained(["A RED  cat", "a red cat", ""])
    np.testing.assert_array_equal(ids[0], ids[1])
    assert mask.sum(1).tolist() == [5, 5, 2]  # three whole words between start and end


def test_every_text_comes_back_from_its_ids(tmp_path):
    backends = pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer(CAPTIONS, 300, 40, tmp_path)
    backend = backends.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["ein kätzchen", "☃ 9/10", "a red cat"]
    ids, mask = tokenizer(texts)
    for text, row, length in zip(texts, ids, mask.sum(1), strict=True):
        assert backend.decode(row[:length].tolist()).strip() == text


def test_training_is_deterministic(trained, tmp_path):
    for name, captions in (("same", CAPTIONS), ("reversed", CAPTIONS[::-1])):
        train_tokenizer(captions, 300, 12, tmp_path / name)
    one, other = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("same", "reversed"))
    assert one == other
    assert load_tokenizer(tmp_path / "same").identity == trained.identity
    different = train_tokenizer([*CAPTIONS, "green green trees"], 300, 12, tmp_path / "different")
    assert different.identity != trained.identity


def test_ids_follow_the_order_of_training(tmp_path):
    # Nothing of the order may come from hashing, which differs between processes.
    train_tokenizer(CAPTIONS, 300, 12, tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    ids = model["vocab"]
    assert [ids[a + b] for a, b in model["merges"]] == list(range(257, len(ids) - 2))
    letters = sorted((piece for piece in ids if len(piece) == 1), key=ids.get)
    assert letters == sorted(letters)
    assert [ids[piece] for piece in letters] == list(range(1, 257))


def test_trained_folder_is_read_beside_model_files(trained, tmp_path):
    # A config.json that says "clip" must not make a CLIP tokenizer of it.
    folder = tmp_path / "model"
    train_tokenizer(CAPTIONS, 300, 12, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    text = ["It's a red cat"]
    np.testing.assert_array_equal(load_tokenizer(folder)(text)[0], trained(text)[0])


def test_no_texts(trained):
    ids, mask = trained([])
    assert ids.shape == mask.shape == (0, 12)


def test_bad_texts_are_refused(trained):
    with pytest.raises(TypeError, match="texts is one str 'a cat'; must be a sequence of str"):
        trained("a cat")
    with pytest.raises(TypeError, match="a sequence with bytes; must be a sequence of str"):
        trained(["a cat", b"a dog"])
    with pytest.raises(ValueError, match="not Unicode: it holds a lone surrogate"):
        trained(["a cat", "a d\udcffg"])


def test_bad_folders_are_refused(clip_files, t5_files, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no tokenizer.json, no vocab.json with merges.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="records no model_max_length; give a length"):
        load_tokenizer(t5_files)
    with pytest.raises(ValueError, match="max_length = 2: must exceed the 2 special tokens"):
        load_tokenizer(clip_files, 2)


def test_a_missing_package_is_named(t5_files, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name)
    )
    with pytest.raises(ImportError, match="spiece.model' needs the package sentencepiece"):
        load_tokenizer(t5_files, 9)


def test_tokenizers_without_special_tokens_are_refused(trained, tmp_path):
    train_tokenizer(CAPTIONS, 300, 12, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 12})
    )
    with pytest.raises(ValueError, match="has no eos_token; tokenizer_config.json or"):
        load_tokenizer(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "model_max_length": 12})
    )
    with pytest.raises(
        ValueError, match=r"encodes '' as \[\], which does not end in its end token"
    ):
        load_tokenizer(tmp_path)


def test_impossible_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size = 258: must be at least 259"):
        train_tokenizer(CAPTIONS, 258, 12, tmp_path)
    with pytest.raises(ValueError, match="captions is empty"):
        train_tokenizer([], 300, 12, tmp_path)


def test_smallest_vocabulary_is_bytes_alone(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, 259, 20, tmp_path)
    assert tokenizer.vocab_size == 259
    assert tokenizer(["cat"])[1].sum() == 2 + len(" cat")


def test_a_copied_vocabulary_has_the_same_identity(clip_files, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(clip_files / name, tmp_path)
    assert load_tokenizer(tmp_path, 30).identity == load_tokenizer(clip_files).identity


def test_words_without_end_are_trained_on_in_pieces(tmp_path, monkeypatch, caplog):
    """Training takes the square of a word's length: 80,000 letters took minutes."""
    longest = []
    train = tokenizers._train_bpe

    def measured(captions, most):
        longest.extend(len(word) for caption in captions for word in caption.split())
        return train(captions, most)

    monkeypatch.setattr(tokenizers, "_train_bpe", measured)
    letters = np.random.default_rng(0).integers(97, 123, 80_000).astype(np.uint8).tobytes().decode()
    strange = [letters, "\u00a0".join(["nbsp"] * 1000), "\x1c" * 5000, "x" * 256]
    tokenizer = train_tokenizer([*CAPTIONS, *strange], 300, 12, tmp_path)
    assert max(longest) == 256 and sum(longest) < 5 * 2000
    assert caplog.messages == [
        "tokenizer: of 3 captions only the first 2000 characters are used, "
        "3 words of more than 256 characters are split"
    ]
    ids, mask = tokenizer([letters, "a red cat"])
    assert mask.all(1).tolist() == [True, False] and ids[0, -1] == tokenizer.eot_token_id


def test_captions_of_common_length_are_trained_on_as_they_are(caplog):
    captions = [*CAPTIONS, "word " * 399, "x" * 256, "\u00e9\t a\n b"]
    assert tokenizers._bounded(captions) == captions and not caplog.records


def test_what_a_warning_names_cannot_command_a_terminal(trained, caplog):
    trained(["a " * 20 + "\x1b[31mred\u202e"], warn=True)
    assert "\\x1b[31mred\\u202e" in caplog.messages[0] and caplog.messages[0].isprintable()

"""Tokenizers that strangers made: whatever is wrong with one, one sentence names its folder."""

import json
import os
import shutil

import pytest

from contextdiff_jax.encoders.tokenizers import load_tokenizer, train_tokenizer

CAPTIONS = ["a red cat on a mat", "a blue dog on a mat"] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, 300, 12, folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "tokenizer")


def of_json(name, change):
    """Returns a change of a folder: of the content of one of its JSON files."""

    def spoil(folder):
        content = json.loads((folder / name).read_text())
        content = change(content) or content
        (folder / name).write_text(json.dumps(content))

    return spoil


def bpe(**fields):
    return of_json("tokenizer.json", lambda content: content["model"].update(fields))


def described(**fields):
    return of_json("tokenizer_config.json", lambda content: content.update(fields))


def bytes_in(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def fifo(name):
    def spoil(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def vocabulary(change):
    return of_json(
        "tokenizer.json",
        lambda content: content["model"].update(vocab=change(content["model"]["vocab"])),
    )


def without_template(content):
    content["post_processor"] = None


MALFORMED = {
    "empty file": bytes_in("tokenizer.json", b""),
    "garbage": bytes_in("tokenizer.json", b"\x93NUMPY\xff\xfe" * 99),
    "half a file": lambda f: os.truncate(f / "tokenizer.json", 900),
    "a list": bytes_in("tokenizer.json", b"[]"),
    "no model": bytes_in("tokenizer.json", b"{}"),
    "model of another kind": bpe(type="WordMagic"),
    "deep": bytes_in("tokenizer.json", b"[" * 100_000),
    "vocabulary is a list": bpe(vocab=[1, 2]),
    "negative ids": vocabulary(lambda vocab: vocab | {"a": -1}),
    "ids beyond 32 bits": vocabulary(lambda vocab: vocab | {"a": 2**40}),
    "ids that are texts": vocabulary(lambda vocab: vocab | {"a": "7"}),
    "empty vocabulary": vocabulary(lambda vocab: {}),
    "merges of unknown pieces": bpe(merges=[["qqq", "zzz"]]),
    "merges of three": bpe(merges=[["a", "b", "c"]]),
    "merges of numbers": bpe(merges=[[1, 2]]),
    "no end token": described(eos_token=None),
    "no padding token": described(pad_token=None),
    "end token of another text": described(eos_token="<|other|>"),
    "end token is a number": described(eos_token=7),
    "texts are not ended": of_json("tokenizer.json", without_template),
    "no length": of_json("tokenizer_config.json", lambda c: c.pop("model_max_length") and None),
    "length is a text": described(model_max_length="12"),
    "length is negative": described(model_max_length=-3),
    "length is 0": described(model_max_length=0),
    "length is huge": described(model_max_length=10**8),
    "length is a fraction": described(model_max_length=12.5),
    "length is NaN": described(model_max_length=float("nan")),
    "description is a list": bytes_in("tokenizer_config.json", b"[]"),
    "description is garbage": bytes_in("tokenizer_config.json", b"\xff\xff"),
    "description is a FIFO": fifo("tokenizer_config.json"),
    "map is a list": bytes_in("special_tokens_map.json", b"[3]"),
    "map is a FIFO": fifo("special_tokens_map.json"),
    "added tokens are a list": bytes_in("added_tokens.json", b"[3]"),
    "tokenizer.json is a FIFO": fifo("tokenizer.json"),
    "special tokens of an unknown shape": described(added_tokens_decoder={"x": 3}),
    "extra tokens are numbers": described(extra_special_tokens=[3, 4]),
}


def one_sentence(error, *names):
    text = str(error.value)
    assert text and "\n" not in text and len(text) < 1500
    for name in names:
        assert name in text


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_tokenizer_is_refused(kind, copied):
    MALFORMED[kind](copied)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_tokenizer(copied)
    one_sentence(error, str(copied))


CLIP_FILES = {
    "vocabulary is a list": bytes_in("vocab.json", b"[1]"),
    "vocabulary is garbage": bytes_in("vocab.json", b"\x00\xff"),
    "vocabulary is empty": bytes_in("vocab.json", b"{}"),
    "ids that are texts": of_json("vocab.json", lambda c: dict.fromkeys(c, "x")),
    "negative ids": of_json("vocab.json", lambda c: {key: -i - 1 for i, key in enumerate(c)}),
    "no end token": of_json("vocab.json", lambda c: {k: v for k, v in c.items() if v < 49000}),
    "merges are garbage": bytes_in("merges.txt", b"\xff\x00\xfe" * 50),
    "merges are one word a line": bytes_in("merges.txt", b"#version\nabc\ndef\n"),
    "merges of unknown pieces": bytes_in("merges.txt", "#version\nqqq\u4e00 zzz\u4e01\n".encode()),
    "merges are a FIFO": fifo("merges.txt"),
}


@pytest.mark.parametrize("kind", CLIP_FILES)
def test_malformed_clip_files_are_refused(kind, shared_data, tmp_path):
    folder = shutil.copytree(shared_data("tokenizer/clip"), tmp_path / "clip")
    for path in folder.iterdir():
        path.chmod(0o644)
    folder.chmod(0o755)
    CLIP_FILES[kind](folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_tokenizer(folder)
    one_sentence(error, str(folder))


@pytest.mark.parametrize("kind", ["garbage", "empty", "half", "fifo"])
def test_a_malformed_sentencepiece_model_is_refused(kind, shared_data, tmp_path):
    pytest.importorskip("sentencepiece")
    whole = (shared_data("tokenizer/t5") / "spiece.model").read_bytes()
    content = {"garbage": b"\x0a\xff" * 999, "empty": b"", "half": whole[: len(whole) // 2 + 1]}
    if kind == "fifo":
        os.mkfifo(tmp_path / "spiece.model")
    else:
        (tmp_path / "spiece.model").write_bytes(content[kind])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_tokenizer(tmp_path, 12)
    one_sentence(error, str(tmp_path))

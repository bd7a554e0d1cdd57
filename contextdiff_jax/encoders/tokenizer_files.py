"""Tokenizer folders, which strangers made: checked, then read by transformers."""

import importlib.util
import os
import pathlib
from typing import Any

from contextdiff_jax.system.json_files import read_object

# A tokenizer.json is complete. The classes named after models rebuild parts of it by their own
# rules, so they only read the files of their own kind.
_KINDS = (
    (("tokenizer.json",), "PreTrainedTokenizerFast"),
    (("vocab.json", "merges.txt"), "CLIPTokenizer"),
    (("spiece.model",), "T5Tokenizer"),
)
_DESCRIPTIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_BESIDE = ("chat_template.jinja", "additional_chat_templates")  # read too, and not needed
_MOST_BYTES = 256 * 2**20  # of one file; the largest published ones have 35 MB
_MOST_SHOWN = 300  # characters of what a library says


def read_tokenizer(folder: pathlib.Path) -> Any:
    """Returns transformers' tokenizer of a local folder.

    Raises FileNotFoundError where it has no files of a known kind, ImportError where spiece.model
    is to be read without sentencepiece, and ValueError, naming folder or file, where one is no
    regular file, is over-large or cannot be read.
    """
    import transformers

    _check_files(folder)
    kind = _kind(folder)
    if kind == "T5Tokenizer":
        _check_sentencepiece(folder / "spiece.model")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True)
    except BaseException as error:
        # Both libraries raise whatever came first; a panic of the Rust one is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizer {str(folder)!r} cannot be read: {_line(error)}") from error


def tokenizer_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a local folder that make its tokenizer. Raises as read_tokenizer."""
    _check_files(folder)
    _kind(folder)
    names = [name for files, _ in _KINDS for name in files]
    return [folder / name for name in (*names, *_DESCRIPTIONS) if (folder / name).is_file()]


def _kind(folder: pathlib.Path) -> str:
    for files, kind in _KINDS:
        if all((folder / file).is_file() for file in files):
            return kind
    raise FileNotFoundError(
        f"tokenizer folder {str(folder)!r} has no tokenizer.json, no vocab.json with merges.txt "
        "and no spiece.model"
    )


def _check_files(folder: pathlib.Path) -> None:
    """Raises ValueError for a file that would block, fill the memory, or describe nothing."""
    vocabularies = [name for files, _ in _KINDS for name in files]
    for name in (*vocabularies, *_DESCRIPTIONS, *_BESIDE):
        path = folder / name
        if not os.path.lexists(path) or (name in _BESIDE and path.is_dir()):
            continue
        if not path.is_file():
            raise ValueError(f"{str(path)!r} is no regular file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{str(path)!r} has more than {_MOST_BYTES:,} bytes")
        if name in _DESCRIPTIONS:
            read_object(path)


def _check_sentencepiece(path: pathlib.Path) -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        raise ImportError(f"{str(path)!r} needs the package sentencepiece to be read")
    import sentencepiece

    try:  # transformers takes a file that is no model for one of another kind
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(path.read_bytes())
    except Exception as error:
        raise ValueError(f"{str(path)!r} is no SentencePiece model: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:_MOST_SHOWN]

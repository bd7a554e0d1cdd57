"""Tokenizers of captions and prompts: published ones from local folders, or one trained here.

Only `load_tokenizer` and `train_tokenizer` need transformers and tokenizers; nothing is fetched.
"""

import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.tokenizer_files import read_tokenizer
from contextdiff_jax.system.atomic_write import cleared, written_whole
from contextdiff_jax.system.limits import LIMITS
from contextdiff_jax.system.printable import printable
from contextdiff_jax.system.scalars import shown

_SPECIAL = _PAD, _START, _END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
_NUM_BYTES = 256
_MOST_CUT_WORDS = 50  # named in one warning
# Characters to train on of a caption, and of a word, whose time grows with the square of it.
_LONGEST_CAPTION, _LONGEST_WORD = 2_000, 256
# Plain spaces only: what else counts as white space, Python and the backend do not agree on.
_LONG_WORD = re.compile(rf"[^ \t\n\v\f\r]{{{_LONGEST_WORD + 1},}}")
# transformers marks "no limit" by a number of about 1e30.
_NO_LIMIT = 10**9
_MOST_TOKENS = LIMITS["EncoderRef"]["max_length"]


class Tokenizer:
    """Texts to token ids of one fixed length. Calls are batched; safe to pickle.

    Special tokens written out in a text are read as plain text, so that a caption holding
    "<|endoftext|>" does not end early. The empty text is legal: its ids are the start and end
    tokens (T5: the end token), and the mask covers them.

    Attributes:
      max_length: length of every row.
      vocab_size: one more than the largest id.
      eot_token_id, pad_token_id: the tokens that end a text and fill its row.
      identity: "sha256:" and 16 hex digits of the vocabulary.
      truncated: number of texts cut so far by this object (each process counts its own).
    """

    def __init__(self, backend: Any, max_length: int, eot_token_id: int, pad_token_id: int):
        """Wraps `backend`, a tokenizers.Tokenizer whose post-processor adds the end token."""
        empty = _configured(backend).encode("").ids
        if not empty or empty[-1] != eot_token_id:
            raise ValueError(
                f"the tokenizer encodes '' as {empty}, which does not end in its end token "
                f"{eot_token_id}"
            )
        if max_length <= len(empty):
            raise ValueError(
                f"max_length = {max_length}: must exceed the {len(empty)} special tokens of a text"
            )
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.max_length = max_length
        self.vocab_size = max(vocabulary.values()) + 1
        self.eot_token_id = eot_token_id
        self.pad_token_id = pad_token_id
        self.identity = _identity(vocabulary)
        self.truncated = 0
        self._backend = backend

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _configured(self._backend)  # pickling a backend drops these settings

    def __call__(self, texts: Sequence[str], warn: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts.

        A text of more than max_length tokens is cut, keeping its end token, and counted in
        `truncated`; with `warn` a warning names the words lost (for prompts; a training set would
        flood the log).

        Args:
          texts: strings; a single string is refused.
          warn: whether cuts are logged.

        Returns:
          ids (B, max_length) int32, and mask (B, max_length) bool, True up to and including the
          end token.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts is {_described(texts)}; must be a sequence of str")
        ids = np.full((len(texts), self.max_length), self.pad_token_id, np.int32)
        mask = np.zeros((len(texts), self.max_length), bool)
        for row, text in enumerate(self._encode(texts)):
            length = min(len(text), self.max_length)
            ids[row, :length] = text[:length]
            mask[row, :length] = True
            if len(text) > self.max_length:
                ids[row, -1] = self.eot_token_id
                self.truncated += 1
                if warn:
                    self._warn(texts[row])
        return ids, mask

    def cut_words(self, text: str) -> list[str]:
        """Returns the words of `text` that __call__ cuts off, whole or in part; often none."""
        encoding = self._backend.encode(text)
        if len(encoding.ids) <= self.max_length:
            return []
        start = encoding.offsets[self.max_length - 1][0]
        while start > 0 and not text[start - 1].isspace() and not text[start].isspace():
            start -= 1
        return text[start:].split()

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns which part text[start:end] each token of `text` stands for; (0, 0) for none.

        Without padding, and without tokens that __call__ cuts off.
        """
        spans = self._backend.encode(text).offsets
        if len(spans) <= self.max_length:
            return spans
        return [*spans[: self.max_length - 1], (0, 0)]  # the end token stands at the cut

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts))]
        except TypeError as error:
            # The only str the backend refuses: halves of surrogate pairs, from careless decoding.
            bad = next((text for text in texts if not _is_unicode(text)), None)
            if bad is None:
                raise
            raise ValueError(f"text {bad!r} is not Unicode: it holds a lone surrogate") from error

    def _warn(self, text: str) -> None:
        words = self.cut_words(text)
        more = len(words) - _MOST_CUT_WORDS
        logging.getLogger(__name__).warning(
            "prompt cut to %d tokens; lost: %s%s",
            self.max_length,
            " ".join(map(printable, words[:_MOST_CUT_WORDS])),
            f" ... and {more} more words" if more > 0 else "",
        )


def load_tokenizer(folder: str | pathlib.Path, max_length: int | None = None) -> Tokenizer:
    """Returns the tokenizer in a local folder.

    Read are, in this order: tokenizer.json (with its special tokens in tokenizer_config.json),
    vocab.json with merges.txt (CLIP), spiece.model (T5).

    Args:
      folder: the folder.
      max_length: length of every row; None takes model_max_length of tokenizer_config.json.

    Raises:
      FileNotFoundError: the folder or such files are missing.
      ImportError: spiece.model is to be read without the package sentencepiece.
      ValueError: no length is given or recorded, it has no end or padding token, or its files are
        damaged.
    """
    folder = local_folder(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"tokenizer folder {str(folder)!r} does not exist")
    tokenizer, where = read_tokenizer(folder), f"tokenizer {str(folder)!r}"
    if max_length is None:
        max_length = _recorded_length(tokenizer, where)
    for token in ("eos_token", "pad_token"):
        if getattr(tokenizer, token) is None:
            raise ValueError(
                f"{where} has no {token}; "
                "tokenizer_config.json or special_tokens_map.json must name one"
            )
    ids = tokenizer.eos_token_id, tokenizer.pad_token_id
    try:
        return Tokenizer(tokenizer.backend_tokenizer, max_length, *ids)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _recorded_length(tokenizer: Any, where: str) -> int:
    length = tokenizer.model_max_length
    if isinstance(length, (int, float)) and length > _NO_LIMIT:
        raise ValueError(f"{where} records no model_max_length; give a length")
    if type(length) is not int or not 1 <= length <= _MOST_TOKENS:
        raise ValueError(
            f"{where} records model_max_length = {shown(length)}: must be an integer from 1 to "
            f"{_MOST_TOKENS:,}"
        )
    return length


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, max_length: int, folder: str | pathlib.Path
) -> Tokenizer:
    """Trains a byte-level BPE (Sennrich et al. 2016) on captions and writes it to `folder`.

    Texts are normalized (NFC, lowercase, runs of white space to one space). All 256 bytes are in
    the vocabulary, so that every text can be written. As in CLIP, the start and end tokens are the
    two largest ids; padding is 0. The result depends on the captions and sizes alone, not on the
    captions' order. Of a caption the first 2,000 characters are trained on, words of more than 256
    in pieces of so many; a warning counts both. Files: tokenizer.json, tokenizer_config.json.

    Args:
      captions: at least one.
      vocab_size: upper bound; few captions make fewer merges. At least 259.
      max_length: recorded as the length of every row.
      folder: created where missing.
    """
    if vocab_size < _NUM_BYTES + len(_SPECIAL):
        raise ValueError(
            f"vocab_size = {vocab_size}: must be at least {_NUM_BYTES + len(_SPECIAL)}, "
            "the bytes and special tokens"
        )
    captions = list(captions)
    if not captions:
        raise ValueError("captions is empty; a tokenizer needs at least one to train on")
    backend = _train_bpe(_bounded(captions), vocab_size - len(_SPECIAL))
    description = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "pad_token": _PAD,
        "bos_token": _START,
        "eos_token": _END,
    }
    target = cleared(folder)
    with written_whole(target / "tokenizer_config.json") as path:
        path.write_text(json.dumps(description, indent=2) + "\n")
    # Last: where it stands, the tokenizer is whole.
    with written_whole(target / "tokenizer.json") as path:
        backend.save(str(path))
    return load_tokenizer(folder)


def _bounded(captions: Sequence[str]) -> list[str]:
    """Returns the captions, short enough and with spaces in words that are longer than words."""
    words = 0

    def in_pieces(word: re.Match) -> str:
        nonlocal words
        words += 1
        pieces = range(0, len(word[0]), _LONGEST_WORD)
        return " ".join(word[0][begin : begin + _LONGEST_WORD] for begin in pieces)

    bounded = [_LONG_WORD.sub(in_pieces, caption[:_LONGEST_CAPTION]) for caption in captions]
    long = sum(len(caption) > _LONGEST_CAPTION for caption in captions)
    if long or words:
        logging.getLogger(__name__).warning(
            "tokenizer: of %d captions only the first %d characters are used, "
            "%d words of more than %d characters are split",
            *(long, _LONGEST_CAPTION, words, _LONGEST_WORD),
        )
    return bounded


def _train_bpe(captions: Sequence[str], most: int) -> Any:
    """Returns a backend with at most `most` bytes and merges between the special tokens' ids."""
    from tokenizers import (
        Regex,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from tokenizers import Tokenizer as Backend

    normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained = Backend(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizer, words
    trainer = trainers.BpeTrainer(
        vocab_size=most,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: i for i, piece in enumerate([_PAD, *pieces, _START, _END])}
    merges = [tuple(pair) for pair in model["merges"]]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer, backend.pre_tokenizer = normalizer, words
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(_SPECIAL))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}",
        special_tokens=[(token, vocabulary[token]) for token in (_START, _END)],
    )
    return backend


def _configured(backend: Any) -> Any:
    """Sets what Tokenizer relies on: full length, no padding, special tokens as plain text."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def _identity(vocabulary: dict[str, int]) -> str:
    entries = json.dumps(sorted(vocabulary.items()), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(entries.encode()).hexdigest()[:16]}"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _described(texts: Any) -> str:
    if isinstance(texts, str):
        return f"one str {texts!r}"
    return f"a sequence with {next(type(t).__name__ for t in texts if not isinstance(t, str))}"

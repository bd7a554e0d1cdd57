"""Reading precomputed text tokens: what a batch holds instead of token ids."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.example import DamagedSample, DataError, Source

_OPEN_SHARDS = 256
_PROBES = 16  # samples compared before a run starts; in it, every one read is


class Embeddings:
    """The text tokens of a data set's captions, by sample; safe to read from several threads.

    names: the encoders whose tokens are read, all of the folder's by default.
    Raises DataError if the folder holds no finished embeddings.
    """

    def __init__(self, folder: epath.PathLike, names: Sequence[str] | None = None):
        self.folder = epath.Path(folder)
        self.metadata = metadata = shards.finished_metadata(self.folder)
        self.names = tuple(metadata.encoders) if names is None else tuple(names)
        self._dtype = shards.DTYPES[metadata.dtype]
        self._reader = functools.lru_cache(_OPEN_SHARDS)(shards.open_records)

    def __reduce__(self) -> tuple:
        return Embeddings, (self.folder, self.names)

    def read(self, index: int, caption: str) -> dict[str, np.ndarray]:
        """Returns, by encoder, the tokens (length, width) of a caption of sample `index`.

        Raises DataError where the folder holds no such caption for that sample.
        """
        shard, place = divmod(index, self.metadata.shard_size)
        path = self.folder / self.metadata.shard_name(shard)
        entries = shards.read_entries(self._reader(path), path, place)
        found = entries.get(shards.caption_digest(caption))
        if found is None:
            held = f"{len(entries)} others" if entries else "none: it was damaged"
            raise DataError(
                f"sample {index} has the caption {caption!r}, but the embeddings in {self.folder} "
                f"hold {held}: they were made from other data ({self.metadata.source})"
            )
        return self._tokens(found, path)

    def prompts(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the arrays of `collate` for preview prompts; "" is no condition.

        Raises DataError naming a prompt that the folder does not hold.
        """
        path = self.folder / shards.PROMPTS
        entries = shards.read_entries(self._reader(path), path, 0)
        missing = [text for text in prompts if shards.caption_digest(text) not in entries]
        if missing:
            raise DataError(
                f"the preview prompt {missing[0]!r} is not among the embeddings in {self.folder}: "
                "give the python -m contextdiff_jax.prepare command again, it adds prompts"
            )
        rows = [self._tokens(entries[shards.caption_digest(text)], path) for text in prompts]
        present = np.array([bool(text.strip()) for text in prompts])
        return self.collate(rows) | {"present": present}

    def collate(self, rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Pads what `read` returned to the encoders' lengths.

        Returns, for each encoder, NAME_tokens (B, max_length, width) in the stored dtype, zero
        where padded, and NAME_mask (B, max_length) bool; and present (B,), all True.
        """
        arrays: dict[str, np.ndarray] = {"present": np.ones(len(rows), bool)}
        for name in self.names:
            encoder = self.metadata.encoders[name]
            tokens = np.zeros((len(rows), encoder.max_length, encoder.width), self._dtype)
            lengths = np.array([len(row[name]) for row in rows], int)
            for padded, row in zip(tokens, rows, strict=True):
                padded[: len(row[name])] = row[name]
            arrays[f"{name}_tokens"] = tokens
            arrays[f"{name}_mask"] = np.arange(encoder.max_length) < lengths[:, None]
        return arrays

    def check_source(self, source: Source) -> None:
        """Raises DataError unless the embeddings were made from this source.

        Compares the number of samples and the captions of a few; `read` compares every one.
        """
        ours = self.metadata
        if len(source) != ours.samples:
            raise DataError(
                f"the embeddings in {self.folder} are of {ours.samples} samples ({ours.source}), "
                f"the run reads {len(source)} ({source.name})"
            )
        for index in np.linspace(0, len(source) - 1, _PROBES).astype(int).tolist():
            try:
                captions = source.captions(index)
            except DamagedSample:
                continue
            for caption in captions:
                self.read(index, caption)

    def _tokens(self, found: Mapping[str, bytes], path: epath.Path) -> dict[str, Any]:
        tokens = {}
        for name in self.names:
            encoder = self.metadata.encoders[name]
            try:
                tokens[name] = np.frombuffer(found[name], self._dtype).reshape(-1, encoder.width)
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(f"{path} holds damaged {name} tokens: {error}") from error
            if len(tokens[name]) > encoder.max_length:
                raise DataError(
                    f"{path} holds {len(tokens[name])} {name} tokens of one text: must be at most "
                    f"{encoder.max_length}"
                )
        return tokens

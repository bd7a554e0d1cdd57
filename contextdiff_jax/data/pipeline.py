"""Deterministic batches of captioned images that resume from a global example index.

The example at global position p is a pure function of (seed, p): epoch p // len(source), the
place in that epoch's shuffled order, and, where the sample there is damaged, the next sound one
of the same order. Process h of P reads its block of every global batch, so the global stream is
the same for every number of processes and threads, and the position is all there is to save.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from contextdiff_jax.data import workers
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.example import DamagedSample, DataError, Example, SkipReport, Source

Tokenize = Callable[[Sequence[str]], Mapping[str, np.ndarray]]

_GIVE_UP_AFTER = 10_000  # damaged samples in a row
_READY_BATCHES = 2
_PIECE = 8  # examples that a reading thread hands over together
_MOST_SAMPLES = 2**32  # of grain's index shuffle


@dataclasses.dataclass(frozen=True)
class Record:
    """What a report needs to know of one position.

    index, key, notes: of the sample in its source. damaged: (index, key, reason) of the samples
    passed over to reach it.
    """

    index: int
    key: str
    notes: tuple[str, ...]
    damaged: tuple[tuple[int, str, str], ...]

    def count(self, report: SkipReport) -> None:
        """Counts what was passed over and what was repaired."""
        for index, key, reason in self.damaged:
            report.skip(reason, key, index)
        if self.notes:
            report.repair(self.notes, self.key, self.index)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What stands at one position: image uint8 (R, R, 3), the caption drawn for it, its record.

    maps: what else lies over the picture. tokens: the caption's, by encoder, where they are read
    instead of computed.
    """

    image: np.ndarray
    caption: str
    record: Record
    maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, np.ndarray] | None = None


class Stream:
    """The endless stream of examples, by global position."""

    def __init__(self, source: Source, seed: int, shuffle: bool = True, flip: bool = False):
        if not 0 < len(source) <= _MOST_SAMPLES:
            raise DataError(f"{source.name} has {len(source)} samples: must be 1 to 2**32")
        self.source = source
        self._seed = seed
        self._flip = flip
        order = grain.MapDataset.range(len(source))
        if shuffle:
            # grain adds the epoch to the seed; neighbouring seeds must not share their epochs.
            order = order.shuffle(seed=int(self._random("order", 0).integers(2**32)))
        self._order = order.repeat()
        self._set_up()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._set_up()

    def _set_up(self) -> None:
        self._order[0]  # grain sets itself up on the first access, which threads must not share

    def __getitem__(self, position: int) -> Loaded:
        """Returns what stands at a position. Raises DataError if no sound sample is found."""
        source, length = self.source, len(self.source)
        begin, offset = position // length * length, position % length
        damaged: list[tuple[int, str, str]] = []
        for step in range(min(length, _GIVE_UP_AFTER)):
            index = self._order[begin + (offset + step) % length]
            try:
                example = source[index]
            except DamagedSample as error:
                damaged.append((index, error.key, error.reason))
                continue
            return self._drawn(position, index, example, tuple(damaged))
        reasons = collections.Counter(reason for _, _, reason in damaged)
        raise DataError(
            f"no usable sample left in {source.name}: {len(damaged)} in a row are damaged ("
            + "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
            + f"), the first is {damaged[0][1]}"
        )

    def _drawn(self, position: int, index: int, example: Example, damaged: tuple) -> Loaded:
        """Draws the caption and the mirroring of this position."""
        if self._flip and self._random("flip", position).integers(2):
            example = example.mirrored()
        caption = example.captions[0]
        if len(example.captions) > 1:
            choice = self._random("caption", position).integers(len(example.captions))
            caption = example.captions[choice]
        record = Record(index, example.key, example.notes, damaged)
        return Loaded(example.image, caption, record, example.maps)

    def _random(self, name: str, position: int) -> np.random.Generator:
        return np.random.default_rng([abs(self._seed), self._seed < 0, *name.encode(), position])


class Batches:
    """Iterator of this process's part of the global batches.

    Batches are dicts: image uint8 (b, R, R, 3), the samples' maps by name, index int64 (b,) the
    samples' indices in their source, what `tokenize` returns for the b captions or `embeddings`
    hold of them, and "captions" (b,) object if with_text.
    """

    def __init__(self, batches: Any, report: SkipReport, start: int, batch_size: int):
        # In a list so that the finalizer can drop it: grain's own clean-up fails when it runs
        # while Python is going down.
        self._open = [batches]
        self._finish = weakref.finalize(self, _close, self._open)
        self._begun = False
        self._report = report
        self._batch_size = batch_size
        self.position = start
        """The global example index after the last batch handed out."""

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._open:
            raise ValueError("these batches are closed")
        # The first starts the threads and processes that read.
        starting = contextlib.nullcontext() if self._begun else workers.notices_wait()
        with workers.lost_process_is_data_error(), starting:
            batch, records = next(self._open[0])
        self._begun = True
        # Counted when handed out, not when read ahead: the report belongs to the position.
        for record in records:
            record.count(self._report)
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """Stops the threads and processes that read ahead."""
        self._finish()


def _close(batches: list) -> None:
    batches.pop().close()


def make_batches(
    source: Source,
    config: DataConfig,
    batch_size: int,
    *,
    seed: int,
    tokenize: Tokenize | None = None,
    embeddings: Embeddings | None = None,
    start_position: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    report: SkipReport | None = None,
    with_text: bool = False,
) -> Batches:
    """Returns the endless batches from global position `start_position` on.

    batch_size is global; process h of P gets places [h b, (h + 1) b), b = batch_size / P, of every
    batch. `tokenize` or `embeddings` give the arrays of the captions. `report` counts the samples
    passed over. With config.processes, `source` and `embeddings` are pickled for each of them and
    `tokenize` is called in this one. Raises ValueError for numbers that do not fit; iteration
    raises what reading raises, DataError when no usable sample is left.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size = {batch_size}: must be a positive multiple of {process_count} processes"
        )
    if start_position < 0 or not 0 <= process_index < process_count:
        raise ValueError(
            f"start_position = {start_position} must be >= 0 and process_index = {process_index} "
            f"in [0, {process_count})"
        )
    part = batch_size // process_count
    places = _Places(
        Stream(source, seed, config.shuffle, config.flip),
        start_position + process_index * part,
        part,
        batch_size,
        embeddings,
        # Workers take elements in turns, so theirs are whole batches.
        part if config.processes else _PIECE,
    )
    ahead = max(places.pieces, 2 * config.reading_threads)
    read = grain.ReadOptions(num_threads=config.reading_threads, prefetch_buffer_size=ahead)
    pieces = grain.MapDataset.source(places).to_iter_dataset(read)
    stack = functools.partial(_stacked, embeddings)
    stacked = pieces.batch(places.pieces, drop_remainder=True, batch_fn=stack)
    if config.processes:
        stacked = workers.in_processes(stacked, config.processes)
    batches = stacked.map(functools.partial(_with_captions, tokenize, with_text))
    if config.reading_threads:
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=_READY_BATCHES
        )
    return Batches(
        iter(batches), SkipReport() if report is None else report, start_position, batch_size
    )


def _stacked(
    embeddings: Embeddings | None, pieces: Sequence[list[Loaded]]
) -> tuple[dict[str, np.ndarray], list[str], list[Record]]:
    """Returns a batch's arrays, captions and records."""
    examples = list(itertools.chain.from_iterable(pieces))
    records = [loaded.record for loaded in examples]
    arrays = {
        "image": np.stack([loaded.image for loaded in examples]),
        **{name: np.stack([e.maps[name] for e in examples]) for name in examples[0].maps},
        "index": np.array([record.index for record in records], np.int64),
        **({} if embeddings is None else embeddings.collate([e.tokens for e in examples])),
    }
    return arrays, [loaded.caption for loaded in examples], records


def _with_captions(
    tokenize: Tokenize | None,
    with_text: bool,
    stacked: tuple[dict[str, np.ndarray], list[str], list[Record]],
) -> tuple[dict[str, np.ndarray], list[Record]]:
    """Returns the batch with its captions' arrays, and the records."""
    arrays, captions, records = stacked
    batch = arrays | ({} if tokenize is None else dict(tokenize(captions)))
    if with_text:
        batch["captions"] = np.array(captions, object)
    return batch, records


class _Places:
    """This process's positions, in order, as grain's random access source.

    An element is a piece of a batch, at most `piece` examples: handing each over by itself would
    cost as much as decoding a small picture. pieces: how many make a batch.
    """

    def __init__(
        self,
        stream: Stream,
        first: int,
        part: int,
        batch_size: int,
        embeddings: Embeddings | None,
        piece: int,
    ):
        self._stream = stream
        self._first = first
        self._part = part
        self._batch_size = batch_size
        self._embeddings = embeddings
        self._piece = piece
        self.pieces = -(-part // piece)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> list[Loaded]:
        batch, piece = divmod(number, self.pieces)
        first = self._first + batch * self._batch_size
        places = range(self._part)[piece * self._piece : (piece + 1) * self._piece]
        return [self._load(first + place) for place in places]

    def _load(self, position: int) -> Loaded:
        loaded = self._stream[position]
        if self._embeddings is None:
            return loaded
        tokens = self._embeddings.read(loaded.record.index, loaded.caption)
        return dataclasses.replace(loaded, tokens=tokens)


def probe(source: Source, count: int = 4, report: SkipReport | None = None) -> None:
    """Reads the first positions, so that unusable data ends a run before anything compiles.

    Raises DataError if there is no usable sample; `report` counts what was passed over.
    """
    stream = Stream(source, seed=0, shuffle=False)
    for position in range(count):
        record = stream[position].record
        if report is not None:
            record.count(report)

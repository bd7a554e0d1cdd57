"""Text tokens computed once, on disk: one ArrayRecord file per range of a source's samples.

    FOLDER/metadata.json                 what was encoded by what, and whether all of it is there
    FOLDER/00000-of-00040.array_record   one record per sample, then one with the shard's report
    FOLDER/prompts.array_record          the preview prompts, one record
    FOLDER/data_report.json              the samples left out, by reason

A record is a msgpack list with one pair per caption: its digest, and its tokens by encoder, the
bytes of (length, width) little-endian values without padding. A damaged sample has an empty list.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import ml_dtypes
import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.system import buckets
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.json_files import read_object
from contextdiff_jax.system.printable import printable
from contextdiff_jax.system.scalars import read_scalar

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
PROMPTS = "prompts.array_record"
METADATA = "metadata.json"
REPORT = "data_report.json"

_FORMAT = 1
_MOST_SAMPLES = 10**12
_MOST_TOKEN_SIZE = 2**16  # length of a text, width of a token
# Tokens hardly compress. One record a group: a sample is read without its neighbours.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access

Tokens = Mapping[str, np.ndarray]
"""By encoder, the tokens (length, width) of one text."""


class WriteError(OSError):
    """A file of records could not be written."""


@dataclasses.dataclass(frozen=True)
class StoredEncoder:
    """identity: of weights and vocabulary. max_length: where texts were cut. width: of a token."""

    identity: str
    max_length: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharded:
    """What a folder with one record per sample says of itself, whatever the records hold.

    source: name of the data. samples: how many it has. shard_size: samples per file. dtype: of the
    stored values, "bfloat16" or "float32"; compute_dtype: what they were computed in. finished:
    whether every shard is there.
    """

    source: str
    samples: int
    shard_size: int
    dtype: str
    compute_dtype: str
    finished: bool = False

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.samples // self.shard_size)

    def samples_of(self, shard: int) -> range:
        """Returns the samples of a shard."""
        begin = shard * self.shard_size
        return range(begin, min(begin + self.shard_size, self.samples))

    def shard_name(self, shard: int) -> str:
        """Returns the file name of a shard."""
        return f"{shard:05d}-of-{self.shards:05d}.array_record"

    def write(self, folder: epath.Path) -> None:
        """Writes metadata.json, all of it at once."""
        content = {"format": _FORMAT, **dataclasses.asdict(self)}
        with written_whole(folder / METADATA) as file:
            file.write_text(json.dumps(content, indent=2) + "\n")

    def check(self) -> None:
        """Raises ValueError naming what `write` never wrote."""
        for name in ("source", "dtype", "compute_dtype"):
            read_scalar(str, getattr(self, name), name)
        read_scalar(bool, self.finished, "finished")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype = {self.dtype!r}: must be one of {', '.join(DTYPES)}")
        for name in ("samples", "shard_size"):
            check_size(name, getattr(self, name), _MOST_SAMPLES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata(Sharded):
    """What a folder of embeddings holds.

    encoders: by name, "text" and, where the adapter reads another one, "clip".
    """

    what: ClassVar[str] = "embeddings"

    encoders: dict[str, StoredEncoder]

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Metadata":
        """Returns what the content of metadata.json says; it may be a stranger's."""
        encoders = {name: StoredEncoder(**e) for name, e in content.pop("encoders").items()}
        return cls(encoders=encoders, **content)

    def check(self) -> None:
        """Raises ValueError naming what `write` never wrote."""
        super().check()
        for name, encoder in self.encoders.items():
            read_scalar(str, encoder.identity, f"encoders.{name}.identity")
            for key in ("max_length", "width"):
                check_size(f"encoders.{name}.{key}", getattr(encoder, key), _MOST_TOKEN_SIZE)


Kind = TypeVar("Kind", bound=Sharded)


def read_metadata(folder: epath.Path, kind: type[Kind] = Metadata) -> Kind | None:
    """Returns what metadata.json says, or None where there is none yet.

    Raises DataError where it cannot be read, or cannot be right.
    """
    file = folder / METADATA
    if not file.exists():
        return None
    try:
        content = read_object(file)
        if content.pop("format") != _FORMAT:
            raise ValueError(f"its format is not {_FORMAT}, the one this version reads")
        metadata = kind.of(content)
        metadata.check()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is no description of {kind.what}: {printable(error)}") from error
    return metadata


def finished_metadata(folder: epath.Path, kind: type[Kind] = Metadata) -> Kind:
    """Returns what metadata.json says. Raises DataError where the folder is not all there."""
    with buckets.explained(folder, "be read"):
        metadata = read_metadata(folder, kind)
    if metadata is None:
        raise DataError(
            f"no {kind.what} in {folder}: {METADATA} is missing; "
            "make them with python -m contextdiff_jax.prepare"
        )
    if not metadata.finished:
        raise DataError(
            f"the {kind.what} in {folder} are not finished: give the same "
            "python -m contextdiff_jax.prepare command again"
        )
    return metadata


def check_size(name: str, size: Any, most: int) -> None:
    """Raises ValueError, naming it, unless a size is a number from 1 to `most`."""
    if not 1 <= read_scalar(int, size, name) <= most:
        raise ValueError(f"{name} = {size}: must be from 1 to {most:,}")


def caption_digest(caption: str) -> bytes:
    """Returns 8 bytes that tell a caption from others."""
    return hashlib.blake2b(caption.encode(), digest_size=8).digest()


def pack(texts: Iterable[tuple[str, Tokens]]) -> bytes:
    """Returns the record of one sample: its texts with their tokens."""
    return pack_entries(
        {
            caption_digest(text): {name: array.tobytes() for name, array in tokens.items()}
            for text, tokens in texts
        }
    )


def pack_entries(entries: Mapping[bytes, Mapping[str, bytes]]) -> bytes:
    """Returns the record of entries as `unpack` gives them."""
    return msgpack.packb(list(entries.items()))


def unpack(record: bytes) -> dict[bytes, dict[str, bytes]]:
    """Returns, by caption digest, the bytes of the tokens by encoder."""
    return dict(map(tuple, msgpack.unpackb(record)))


def pack_report(report: SkipReport, tally: Mapping[str, Any]) -> bytes:
    """Returns a shard's last record. tally: what else was counted, as json can write it.

    Of tokens: by encoder, the captions longer than its max_length.
    """
    return json.dumps({"report": report.to_json(), "cut": dict(tally)}).encode()


def unpack_report(record: bytes) -> tuple[SkipReport, dict[str, Any]]:
    """Reads `pack_report` back."""
    content = json.loads(record)
    return SkipReport.from_json(content["report"]), content["cut"]


def write_records(path: epath.Path, records: Iterable[bytes]) -> None:
    """Writes an ArrayRecord file, all of it at once. Raises WriteError."""
    with written_whole(path) as file:
        writer = _call(path, array_record_module.ArrayRecordWriter, str(file), _WRITER_OPTIONS)
        try:
            for record in records:
                _call(path, writer.write, record)
        finally:
            _call(path, writer.close)


def open_records(path: epath.Path) -> Any:
    """Opens an ArrayRecord file for random access from several threads. Raises DataError."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path), _READER_OPTIONS)
        count = reader.num_records()
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be opened: {error}") from error
    if not count:  # what the reader says of files that are missing, cut off or something else
        raise DataError(f"{path} is missing or not a whole ArrayRecord file")
    return reader


def read_record(reader: Any, path: epath.Path, place: int) -> bytes:
    """Returns one record; -1 is the last. Raises DataError."""
    try:
        return reader.read([place % reader.num_records()])[0]
    except (RuntimeError, ValueError, OSError) as error:
        raise DataError(f"{path} cannot be read at record {place}: {error}") from error


def read_entries(reader: Any, path: epath.Path, place: int) -> dict[bytes, dict[str, bytes]]:
    """Returns one record as `unpack` does. Raises DataError."""
    record = read_record(reader, path, place)
    try:
        return unpack(record)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged at record {place}: {printable(error)}") from error


def _call(path: epath.Path, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (RuntimeError, OSError) as error:
        raise WriteError(f"{path} could not be written: {error}") from error

"""Encoding a run's data once: shard by shard, resumable, on one or many machines.

Captions are encoded here, pictures in prepare_latents.py. `prepare` does it in this process;
`prepare_beam.py` hands the same shards to Beam's workers.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
from absl import logging
from etils import epath

from contextdiff_jax.config import Config
from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.embedding_shards import Metadata, StoredEncoder
from contextdiff_jax.data.example import DamagedSample, SkipReport
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.encoders.batched import BatchedTextEncoder
from contextdiff_jax.runs import build, manifest
from contextdiff_jax.system.atomic_write import written_whole
from contextdiff_jax.system.progress import ProgressLog
from contextdiff_jax.training.checkpoints import CheckpointError

_WINDOW = 16  # batches of samples whose captions are sorted by length together

Advance = Callable[[int], None]
"""Is told of every so many samples done."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What to encode and where to put it; workers elsewhere are sent nothing else.

    run: whose data and preview prompts. workdir: where the pipeline's own encoders are. output:
    folder of what is encoded. batch_size: texts or pictures per device program. shard_size:
    samples per file. dtype: of the stored values.
    """

    config: Config
    run: str
    workdir: str
    output: str
    batch_size: int = 256
    shard_size: int = 10_000
    dtype: str = "bfloat16"

    @property
    def folder(self) -> epath.Path:
        """The output folder."""
        return epath.Path(self.output)


class ShardWorker:
    """The source of a job, ready to write any shard of it; threads may share it.

    metadata: what the folder will hold. A shard's last record has its report, and a tally of what
    else was counted: a dict that json can write.
    """

    metadata: shards.Sharded

    def __init__(self, job: Job):
        self.job = job
        self.report = SkipReport()
        data = job.config.runs[job.run].data
        if data.endless:
            raise ValueError(
                f"config.runs.{job.run}.data.limit = {data.limit}: must be a number of samples "
                "here, scenes are endless"
            )
        self.source = open_source(data, self.report)

    def path(self, shard: int) -> epath.Path:
        """Returns where a shard lies, once it is written."""
        return self.job.folder / self.metadata.shard_name(shard)

    def write_shard(self, shard: int, advance: Advance) -> None:
        """Encodes and writes one shard, all of it at once. Raises CheckpointError if it cannot."""
        report, tally = SkipReport(), self.new_tally()
        records = self.records(self.metadata.samples_of(shard), report, tally, advance)
        last = (shards.pack_report(report, tally) for _ in range(1))  # made when the rest is there
        _write(self.path(shard), itertools.chain(records, last))

    def new_tally(self) -> dict[str, Any]:
        """Returns the tally of no samples."""
        return {}

    def add_tally(self, total: dict[str, Any], more: dict[str, Any]) -> None:
        """Adds a shard's tally to the total."""

    def records(
        self, samples: range, report: SkipReport, tally: dict[str, Any], advance: Advance
    ) -> Iterator[bytes]:
        """Yields the samples' records; counts damaged samples, and the tally, as it goes."""
        raise NotImplementedError

    def write_more(self) -> None:
        """Writes what the folder holds beside shards."""

    def summary(self, tally: dict[str, Any]) -> tuple[shards.Sharded, dict[str, Any]]:
        """Returns the finished metadata, and what the report says of the tally; logs it, too."""
        return dataclasses.replace(self.metadata, finished=True), {}

    def read(self, samples: range, read: Callable[[int], Any], report: SkipReport) -> list[Any]:
        """Returns read(index) of each sample, None of a damaged one, which is counted."""

        def tried(index: int) -> Any:
            try:
                return read(index)
            except DamagedSample as error:
                return error

        threads = self.job.config.runs[self.job.run].data.reading_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4 * threads, 1))
        places = grain.MapDataset.range(samples.start, samples.stop)
        found = []
        for index, each in zip(samples, places.map(tried).to_iter_dataset(options), strict=True):
            if isinstance(each, DamagedSample):
                report.skip(each.reason, each.key, index)
                each = None
            found.append(each)
        return found


class Worker(ShardWorker):
    """Encodes captions by the text encoders."""

    metadata: Metadata

    def __init__(self, job: Job):
        super().__init__(job)
        encoders = build.load_text_encoders(job.config, build.locate_in(job.workdir))
        self._encoders = {
            name: BatchedTextEncoder(encoder, job.batch_size, shards.DTYPES[job.dtype])
            for name, encoder in encoders.items()
        }
        self.metadata = Metadata(
            source=self.source.name,
            samples=len(self.source),
            shard_size=job.shard_size,
            dtype=job.dtype,
            compute_dtype=str(build.compute_dtype(job.config)),
            encoders={
                name: StoredEncoder(encoder.identity, encoder.max_length, encoder.width)
                for name, encoder in encoders.items()
            },
        )

    def new_tally(self) -> dict[str, Any]:
        """Returns, by encoder, how many captions were cut."""
        return dict.fromkeys(self._encoders, 0)

    def add_tally(self, total: dict[str, Any], more: dict[str, Any]) -> None:
        """Adds a shard's counts to the total."""
        for name, count in more.items():
            total[name] += count

    def summary(self, tally: dict[str, Any]) -> tuple[Metadata, dict[str, Any]]:
        """Returns the finished metadata and the captions that were cut, which are logged."""
        for name, encoder in self.metadata.encoders.items():
            if tally[name]:
                words = "%d captions cut to %d %s tokens"
                logging.warning(words, tally[name], encoder.max_length, name)
        return dataclasses.replace(self.metadata, finished=True), {"cut_captions": tally}

    def write_more(self) -> None:
        """Adds the run's preview prompts to the folder, where they are not there yet."""
        path = self.job.folder / shards.PROMPTS
        entries = {}
        if path.exists():
            entries = shards.read_entries(shards.open_records(path), path, 0)
        prompts = self.job.config.runs[self.job.run].task.preview_prompts
        new = [text for text in prompts if shards.caption_digest(text) not in entries]
        if new or not path.exists():
            tokens, _ = self._encode(new)
            entries |= shards.unpack(shards.pack(zip(new, tokens, strict=True)))
            _write(path, [shards.pack_entries(entries)])

    def records(
        self, samples: range, report: SkipReport, tally: dict[str, Any], advance: Advance
    ) -> Iterator[bytes]:
        """Yields the samples' records; counts damaged samples and cut captions as it goes."""
        window = _WINDOW * self.job.batch_size
        for begin in range(0, len(samples), window):
            part = samples[begin : begin + window]
            captions = self._captions(part, report)
            tokens, too_long = self._encode(list(itertools.chain.from_iterable(captions)))
            self.add_tally(tally, too_long)
            remaining = iter(tokens)
            for texts in captions:
                yield shards.pack([(text, next(remaining)) for text in texts])
            advance(len(part))

    def _captions(self, samples: range, report: SkipReport) -> list[tuple[str, ...]]:
        """Returns the samples' different captions, none of a damaged sample, which is counted."""

        def captions(index: int) -> tuple[str, ...]:
            return tuple(dict.fromkeys(self.source.captions(index)))

        return [each or () for each in self.read(samples, captions, report)]

    def _encode(self, texts: Sequence[str]) -> tuple[list[shards.Tokens], dict[str, int]]:
        """Returns each text's tokens by encoder, and how many texts each encoder cut."""
        encoded = {name: encoder(texts) for name, encoder in self._encoders.items()}
        columns = [tokens for tokens, _ in encoded.values()]
        rows = [dict(zip(encoded, row, strict=True)) for row in zip(*columns, strict=True)]
        return rows, {name: cut for name, (_, cut) in encoded.items()}


def _write(path: epath.Path, records: Iterator[bytes] | Sequence[bytes]) -> None:
    try:
        shards.write_records(path, records)
    except shards.WriteError as error:
        raise CheckpointError(f"{error}; repair it and give the same command again") from error


def prepare(
    job: Job,
    encode: Callable[[Job, ShardWorker, list[int]], None] | None = None,
    worker: type[ShardWorker] = Worker,
) -> None:
    """Writes what is missing of a job's folder; the same call resumes.

    encode: writes the shards that are missing; in this process by default. worker: what encodes.
    Raises ValueError where the folder holds something else, CheckpointError where a file cannot be
    written.
    """
    worker = worker(job)
    _start(worker)
    missing = _missing(worker)
    logging.info(
        "%s: %d samples of %s in %d shards, %d of them to do",
        *(job.output, worker.metadata.samples, worker.source.name),
        *(worker.metadata.shards, len(missing)),
    )
    (encode or encode_here)(job, worker, missing)
    worker.write_more()
    _finish(worker)


def encode_here(job: Job, worker: ShardWorker, missing: list[int]) -> None:
    """Writes the shards one after the other, logging rate and time left."""
    advance = ProgressLog(sum(len(worker.metadata.samples_of(shard)) for shard in missing))
    for shard in missing:
        worker.write_shard(shard, advance)


def _start(worker: ShardWorker) -> None:
    """Records what the folder will hold, or checks that it began to hold just that."""
    folder, ours = worker.job.folder, worker.metadata
    theirs = shards.read_metadata(folder, type(ours))
    recorded = None if theirs is None else _decisive(theirs)
    manifest.claim(folder, _decisive(ours), recorded, ours.what, lambda: ours.write(folder))


def _decisive(metadata: shards.Sharded) -> dict:
    """What must be equal; the data may have moved."""
    content = dataclasses.asdict(metadata)
    known_at_the_end = ("finished", "mean", "std")
    return {k: value for k, value in content.items() if k not in ("source", *known_at_the_end)}


def _missing(worker: ShardWorker) -> list[int]:
    there = {path.name for path in worker.job.folder.glob("*.array_record")}
    metadata = worker.metadata
    return [n for n in range(metadata.shards) if metadata.shard_name(n) not in there]


def _finish(worker: ShardWorker) -> None:
    """Joins the shards' reports and says in metadata.json that all of them are there."""
    missing = _missing(worker)
    if missing:
        raise CheckpointError(
            f"{len(missing)} shards are missing in {worker.job.output}, the first is "
            f"{worker.metadata.shard_name(missing[0])}: give the same command again"
        )
    report, tally = worker.report, worker.new_tally()
    for shard in range(worker.metadata.shards):
        path = worker.path(shard)
        record = shards.read_record(shards.open_records(path), path, -1)
        of_shard, counted_there = shards.unpack_report(record)
        report.merge(of_shard)
        worker.add_tally(tally, counted_there)
    for line in report.summary():
        logging.info("data: %s", line)
    metadata, more = worker.summary(tally)
    with written_whole(worker.job.folder / shards.REPORT) as file:
        file.write_text(json.dumps(report.to_json() | more, indent=2))
    metadata.write(worker.job.folder)

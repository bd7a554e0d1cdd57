"""The shards of prepare.py as an Apache Beam pipeline; nothing else imports Beam.

An element is the number of a shard. Workers read the data, the encoders and the output folder by
the paths of the job: on a cluster these are buckets, or folders that every worker mounts.
"""

from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from contextdiff_jax.runs.prepare import Job, ShardWorker


class WriteShard(beam.DoFn):
    """Writes the shards whose numbers it is given; the encoders are loaded once per process."""

    def __init__(self, job: Job, kind: type[ShardWorker], shared: Shared):
        self._job = job
        self._kind = kind
        self._shared = shared
        self._samples = Metrics.counter("prepare", "samples")

    def setup(self) -> None:
        """Opens the source and loads the encoders, for all threads of the process."""
        self._worker = self._shared.acquire(lambda: self._kind(self._job))

    def process(self, shard: int) -> Iterator[int]:
        """Writes one shard, unless another attempt has finished it; yields its number."""
        if not self._worker.path(shard).exists():
            self._worker.write_shard(shard, self._samples.inc)
        yield shard


def encode_with_beam(
    job: Job, kind: type[ShardWorker], missing: Sequence[int], runner: str, options: Sequence[str]
) -> None:
    """Writes the missing shards on a Beam runner and waits for it.

    kind: what encodes. runner: e.g. "DirectRunner", "DataflowRunner", "FlinkRunner". options:
    Beam's own flags.
    """
    with beam.Pipeline(runner=runner, options=PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(missing))
            | "Spread" >> beam.Reshuffle()
            | "Encode" >> beam.ParDo(WriteShard(job, kind, Shared()))
        )

"""Where metrics go: the log, a CSV file that plots read, and TensorBoard.

clu's TensorBoard writer imports TensorFlow, which takes seconds and half a GiB. It is used where
the files lie in a bucket, to which TensorFlow alone can append.
"""

import csv
import importlib.util
import io
import os
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from contextdiff_jax.spaces.pictures import write_png
from contextdiff_jax.system.atomic_write import cleared
from contextdiff_jax.system.buckets import in_bucket

_UPLOAD_SECONDS = 60
# TensorFlow's greetings say nothing of use here: it computes nothing, it writes files. That oneDNN
# is on it says before it has read the level of its log.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}


class SummaryWriter(Protocol):
    """The part of clu.metric_writers.MetricWriter that the loop uses."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None: ...

    def write_images(self, step: int, images: Mapping[str, Any]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def make_summary_writer(directory: epath.PathLike) -> SummaryWriter:
    """Returns a TensorBoard writer: in a bucket clu's, where TensorFlow is installed."""
    if in_bucket(directory) and importlib.util.find_spec("tensorflow") is not None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from clu import metric_writers  # imports TensorFlow

        return metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))
    return EventFile(directory)


class EventFile:
    """Scalars and images as TensorBoard events, without TensorFlow.

    In a bucket, whose objects cannot be appended to, the file grows on this machine and is
    uploaded, whole, every minute and at the end.
    """

    def __init__(self, directory: epath.PathLike):
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._target = epath.Path(directory)
        self._local = epath.Path(tempfile.mkdtemp()) if in_bucket(directory) else self._target
        self._local.mkdir(parents=True, exist_ok=True)
        self._uploaded = time.monotonic()
        # TensorBoard finds files by this part of the name, and reads them in order.
        begun, host = int(time.time()), socket.gethostname()
        path = self._local / f"events.out.tfevents.{begun:010d}.{host}.{os.getpid()}"
        self._records = RecordWriter(path.open("ab"))
        self._write(file_version="brain.Event:2")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=k, simple_value=float(v)) for k, v in scalars.items()]
        self._add(step, Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for tag, batch in images.items():
            for index, image in enumerate(np.asarray(batch)):
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                encoded = Summary.Image(
                    height=image.shape[0],
                    width=image.shape[1],
                    colorspace=3,
                    encoded_image_string=buffer.getvalue(),
                )
                values.append(Summary.Value(tag=f"{tag}/{index}", image=encoded))
        self._add(step, Summary(value=values))

    def _add(self, step: int, summary: Any) -> None:
        self._write(step=step, summary=summary)
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        record = Event(wall_time=time.time(), **event).SerializeToString()
        self._records.write(record)
        self._records.flush()  # TensorBoard may be looking

    def flush(self) -> None:
        self._uploaded = time.monotonic()
        for file in self._local.iterdir() if self._local != self._target else ():
            file.copy(self._target / file.name, overwrite=True)

    def close(self) -> None:
        self.flush()
        self._records.close()
        if self._local != self._target:
            self._local.rmtree()


FILE = "metrics.csv"


class MetricLog:
    """One row per logged step: to the log, to metrics.csv, to TensorBoard.

    resumed_at: the step a run resumes at. Rows after it, of work that a kill undid, are dropped.
    """

    def __init__(self, directory: epath.PathLike, resumed_at: int = 0):
        self.directory = epath.Path(directory)
        self._rows = _Rows(self.directory / FILE, resumed_at)
        self._summary = make_summary_writer(self.directory)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalar metrics of `step`; the CSV has the columns step, name, value."""
        logging.info(
            "step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        )
        self._rows.add([(step, name, repr(float(value))) for name, value in values.items()])
        self._summary.write_scalars(step, values)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes one uint8 picture (H, W, 3) to NAME/STEP.png and to TensorBoard."""
        folder = cleared(self.directory / name)  # the run's owner alone writes there
        write_png(folder / f"{step:08d}.png", picture)
        self._summary.write_images(step, {name: picture[None]})

    def close(self) -> None:
        """Flushes and closes the writers."""
        self._summary.flush()
        self._summary.close()


class _Rows:
    """The rows of a CSV file that grows; of an old one those up to a step are kept.

    A half-written last row goes too. Objects in a bucket cannot be appended to: there the whole
    file is written each time.
    """

    def __init__(self, path: epath.Path, kept_to: int):
        self._path = path
        self._in_bucket = in_bucket(path)
        self._all: list[Sequence[Any]] = [("step", "name", "value")]
        if path.exists():
            with path.open() as file:
                rows = [row for row in csv.reader(file) if len(row) == 3]
            self._all += [row for row in rows[1:] if int(row[0]) <= kept_to]
            self._write("w", self._all)
        self._begun = path.exists()

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Writes further rows; the first make the file."""
        if self._begun and not self._in_bucket:
            self._write("a", rows)
            return
        self._all += rows
        self._write("w", self._all)
        self._begun = True

    def _write(self, mode: str, rows: Sequence[Sequence[Any]]) -> None:
        with self._path.open(mode) as file:
            csv.writer(file).writerows(rows)

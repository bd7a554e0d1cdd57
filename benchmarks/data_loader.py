"""Our data loader against bare decoding and resizing of the same files, in images per second.

  python -m benchmarks.data_loader --config=emoji --data_path=PATH/TO/SHARDS

Measured, in turns (loader, bare, loader, bare, ...) in one process after a warm-up:
  loader: make_batches as training calls it: shuffled, reading the files, decoding, drawing
    captions, tokenizing, numpy batches. It stays open, as in training; after the other
    side's turn it first takes, uncounted, as many batches as may have become ready meanwhile.
  bare: the same pictures, their files' bytes already in memory: PIL opens, decodes (a JPEG at
    the scale that the loader takes), converts to RGB and resizes to the same side; as many threads
    as cores.
The loader reads --copies of the data as one set: grain's shuffle is made for large ones, and takes
ten times as long for an index of a small one.
Two ratios are printed: of images per second, in which waiting for Python's lock and for other
programs counts, and of images per second of processor time, all threads and processes together.
Equal: cores, files, resolution, resize mode. Sources with image files in them: shards and folder.
"""

import argparse
import contextlib
import dataclasses
import itertools
import math
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

import numpy as np
import psutil

from benchmarks.configuration import load_config
from benchmarks.turns import Side, compare, cores, finish, load, take_turns, use_cores
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.decode import open_image, reduce, to_square
from contextdiff_jax.data.example import Example, SkipReport, Source
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.shard_index import IMAGE_TYPES
from contextdiff_jax.data.shards import find_shards
from contextdiff_jax.data.sources import open_source, sample_captions
from contextdiff_jax.encoders.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

AIM = 0.85
_LENGTH = 77  # tokens of a tokenizer trained here
_VOCABULARY = 4096
_REST = 0.1  # seconds; longer, and batches have become ready


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", default="emoji", help="name in configs/, with :PRESET after it")
    add("--run", default="base", help="the run whose data section is measured")
    add("--data_path", help="in place of the config's")
    add("--source", choices=("shards", "folder"), help="in place of the config's")
    add("--resolution", type=int, help="in place of the config's")
    add("--threads", type=int, help="of the loader, in place of the config's")
    add("--processes", type=int, help="of the loader, in place of the config's")
    add("--tokenizer", help="folder; without one, a tokenizer is trained on the captions")
    add("--copies", type=int, default=100, help="of the data set, one after the other")
    add("--batch_size", type=int, default=64)
    add("--images", type=int, default=16384, help="of a unit of work; whole batches")
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=6.0, help="of a turn; at least one unit of work is done")
    add("--cores", type=int, help="for either side; all by default")
    add("--json", type=pathlib.Path, help="file for the results")
    return parser.parse_args(argv)


def data_config(args: argparse.Namespace) -> DataConfig:
    """Returns the run's data section with what the flags replace; ValueError if it cannot work."""
    config = load_config(args.config)
    if args.run not in config.runs:
        raise ValueError(f"--run={args.run}: must be one of {', '.join(config.pipeline)}")
    named = {
        "path": args.data_path,
        "source": args.source,
        "resolution": args.resolution,
        "threads": args.threads,
        "processes": args.processes,
    }
    given = {key: value for key, value in named.items() if value is not None}
    # Copies of a data set that keeps what it decoded would measure memory.
    data = dataclasses.replace(config.runs[args.run].data, keep_mib=0, **given)
    data.validate("data")
    if data.source not in ("shards", "folder"):
        raise ValueError(f"data.source = {data.source!r}: must be shards or folder")
    return data


@dataclasses.dataclass
class Metered:
    """A unit of work of so many images, and the processor time per image whenever it ran."""

    run: Callable[[], None]
    images: int
    seconds: list[float] = dataclasses.field(default_factory=list)

    def __call__(self) -> None:
        begin = _processor_seconds()
        self.run()
        self.seconds.append((_processor_seconds() - begin) / self.images)


def _processor_seconds() -> float:
    """Returns what this process and those it has started have used."""
    this = psutil.Process()
    children = [child.cpu_times() for child in this.children()]
    return time.process_time() + sum(times.user + times.system for times in children)


class Copies:
    """A source, so many times over."""

    def __init__(self, source: Source, copies: int):
        self.name = f"{source.name}, {copies} times"
        self._source = source
        self._copies = copies

    def __len__(self) -> int:
        return self._copies * len(self._source)

    def __getitem__(self, index: int) -> Example:
        return self._source[index % len(self._source)]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions of a sample."""
        return self._source.captions(index % len(self._source))


class Loader:
    """Batches as training takes them."""

    def __init__(self, source: Source, data: DataConfig, batch_size: int, tokenizer: Tokenizer):
        def tokenize(captions: Sequence[str]) -> dict[str, np.ndarray]:
            ids, mask = tokenizer(captions)
            return {"text_ids": ids, "text_mask": mask}

        self._batches = make_batches(source, data, batch_size, seed=0, tokenize=tokenize)
        # 4, and 5 of each process, by the time that taking them took after a rest.
        self._ready = 4 + 5 * data.processes
        self._ended = -math.inf

    def take(self, count: int) -> None:
        """Takes so many batches, of which none was ready."""
        if time.monotonic() - self._ended > _REST:
            count += self._ready
        for _ in itertools.islice(self._batches, count):
            pass
        self._ended = time.monotonic()

    def settle(self) -> None:
        """Returns when as much is read ahead as may be."""
        begin = -math.inf
        while (now := _processor_seconds()) - begin > 0.1 * _REST:
            begin = now
            time.sleep(_REST)

    def close(self) -> None:
        """Stops reading."""
        self._batches.close()


def decode(content: bytes, data: DataConfig) -> np.ndarray:
    """Returns the picture of one image file, as the loader would."""
    image = open_image(content)
    shown = reduce(image, data.resolution)
    return np.array(to_square(image.convert("RGB"), data.resolution, data.resize_mode, shown))


def bare(files: Sequence[bytes], data: DataConfig, count: int) -> Callable[[], None]:
    """Returns a function that decodes and resizes `count` of the files, on every core."""

    def work(share: int) -> None:
        for number in range(share, count, threads):
            decode(files[number % len(files)], data)

    def run() -> None:
        list(pool.map(work, range(threads)))

    threads = cores()
    pool = futures.ThreadPoolExecutor(threads)
    return run


def image_files(data: DataConfig, most: int) -> list[bytes]:
    """Returns the bytes of the source's first image files that PIL can decode."""
    files: list[bytes] = []
    for content in _contents(data):
        try:
            with open_image(content) as image:
                image.load()
                large = min(image.size) >= data.min_side
        except OSError:  # damaged; the loader passes over it too
            continue
        if large:
            files.append(content)
        if len(files) == most:
            break
    return files


def _contents(data: DataConfig) -> Iterator[bytes]:
    suffixes = tuple(f".{kind}" for kind in IMAGE_TYPES)
    if data.source == "folder":
        for path in sorted(pathlib.Path(data.path).rglob("*")):
            if path.name.lower().endswith(suffixes):
                yield path.read_bytes()
        return
    for shard in find_shards(data.path, SkipReport()):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(suffixes):
                    yield tar.extractfile(member).read()


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison; returns what --json writes."""
    args = parse(argv)
    data = data_config(args)
    if args.cores is not None:
        use_cores(args.cores)
    source = Copies(open_source(data), args.copies)
    files = image_files(data, args.images)
    with tempfile.TemporaryDirectory() as folder:
        if args.tokenizer:
            tokenizer = load_tokenizer(args.tokenizer, _LENGTH)
        else:
            tokenizer = train_tokenizer(
                sample_captions(source, 2000, 0), _VOCABULARY, _LENGTH, folder
            )
    count = max(1, args.images // args.batch_size)
    images = count * args.batch_size
    readers = f"{data.reading_threads} threads"
    if data.processes:
        readers = f"{data.processes} processes of {readers}"
    print(
        f"{source.name}: {len(source)} samples, {np.mean([len(f) for f in files]) / 1e3:.1f} kB a "
        f"file, to {data.resolution}x{data.resolution}, batch {args.batch_size}; "
        f"loader: {readers}, {cores()} cores"
    )
    results = {"settings": vars(args) | {"json": None}, "cores": cores(), "load_before": load()}
    with contextlib.closing(Loader(source, data, args.batch_size, tokenizer)) as loader:
        runs = {
            "loader": Metered(lambda: loader.take(count), images),
            "bare": Metered(bare(files, data, images), images),
        }
        sides = [Side(name, run, images, loader.settle) for name, run in runs.items()]
        rates = take_turns(sides, args.turns, args.seconds)
    results |= {"rates": rates, "aim": AIM} | compare(rates, "loader", "bare")
    busy = {name: statistics.median(run.seconds) for name, run in runs.items()}
    results |= {"cpu_seconds_per_image": busy, "ratio_of_cpu": busy["bare"] / busy["loader"]}
    print(
        f"  images per second of one core's time: loader {1 / busy['loader']:.0f}, bare "
        f"{1 / busy['bare']:.0f}; ratio {results['ratio_of_cpu']:.3f}, aim {AIM}"
    )
    return finish(results, args.json)


if __name__ == "__main__":
    main()

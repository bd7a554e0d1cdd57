"""Every sample of a source at most once, in order: for evaluations that must not count twice."""

import concurrent.futures
import itertools
from collections.abc import Iterable, Iterator

from contextdiff_jax.data.example import DamagedSample, Example, SkipReport, Source

Numbered = tuple[int, Example]


def one_pass(
    source: Source,
    indices: Iterable[int],
    batch_size: int,
    report: SkipReport,
    threads: int = 1,
) -> Iterator[list[Numbered]]:
    """Yields the sound samples among `indices`, each with its index, `batch_size` at a time.

    The last list may be shorter. Damaged samples are left out and counted in `report`. `threads`
    read one list ahead.
    """

    def read(index: int) -> Numbered | None:
        try:
            example = source[index]
        except DamagedSample as damaged:
            report.skip(damaged.reason, damaged.key, index)
            return None
        if example.notes:
            report.repair(example.notes, example.key, index)
        return index, example

    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as readers:
        sound = _ahead(readers, read, iter(indices), batch_size)
        while batch := list(itertools.islice(sound, batch_size)):
            yield batch


def _ahead(readers, read, indices: Iterator[int], count: int) -> Iterator[Numbered]:
    """Yields what `read` returns of each index, in order, while the next `count` are being read."""
    pending = [readers.submit(read, index) for index in itertools.islice(indices, count)]
    while pending:
        following = [readers.submit(read, index) for index in itertools.islice(indices, count)]
        for future in pending:
            if (found := future.result()) is not None:
                yield found
        pending = following

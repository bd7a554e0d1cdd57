"""Every sound sample once, in order, whatever the batch size and the number of threads."""

import pytest

from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.one_pass import one_pass


@pytest.mark.parametrize(("size", "threads"), [(1, 1), (3, 4), (4, 0), (50, 2)])
def test_each_sound_sample_once(list_source, size, threads):
    source, report = list_source(11, damaged=dict.fromkeys((0, 5, 6, 10), "bad")), SkipReport()
    batches = list(one_pass(source, range(11), size, report, threads))
    found = [index for batch in batches for index, _ in batch]
    assert found == [1, 2, 3, 4, 7, 8, 9]
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(example.key == source[index].key for batch in batches for index, example in batch)
    assert report.total == 4


def test_reads_only_a_little_ahead(list_source):
    source = list_source(100)
    read = []
    plain = type(source).__getitem__

    class Watched(type(source)):
        def __getitem__(self, index):
            read.append(index)
            return plain(self, index)

    source.__class__ = Watched
    batches = one_pass(source, iter(range(100)), 5, SkipReport(), threads=2)
    next(batches)
    assert max(read) < 15
    batches.close()


def test_nothing_to_read(list_source):
    assert list(one_pass(list_source(3), [], 4, SkipReport())) == []
    report = SkipReport()
    assert list(one_pass(list_source(2, damaged={0: "bad", 1: "bad"}), range(2), 4, report)) == []
    assert report.total == 2

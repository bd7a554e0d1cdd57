"""The stream: order, resumption, processes, threads, skipping, errors."""

import dataclasses
import itertools

import numpy as np
import pytest

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.data.pipeline import Stream, make_batches, probe

CONFIG = DataConfig(resolution=8, threads=3)


def take(source, count, batch_size=4, config=CONFIG, seed=0, **options):
    """Returns the first `count` batches; the iterator is closed."""
    batches = make_batches(source, config, batch_size, seed=seed, **options)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def indices(batches) -> list[int]:
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def test_batches_hold_images_indices_and_tokens(list_source):
    def tokenize(captions):
        assert isinstance(captions, list)
        return {"input_ids": np.array([[int(float(c)), 1] for c in captions], np.int32)}

    batch = take(list_source(10), 1, tokenize=tokenize, with_text=True)[0]
    assert sorted(batch) == ["captions", "image", "index", "input_ids"]
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["index"].shape == (4,) and batch["index"].dtype == np.int64
    assert batch["captions"].dtype == object
    for i, image, ids, caption in zip(
        batch["index"], batch["image"], batch["input_ids"], batch["captions"], strict=True
    ):
        assert image[0, 1, 0] == i == ids[0] and caption == f"{i}.0"
    assert sorted(take(list_source(10), 1)[0]) == ["image", "index"]


def test_every_epoch_is_another_permutation(list_source):
    seen = indices(take(list_source(12), 9))
    epochs = [seen[i : i + 12] for i in range(0, 36, 12)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12)) != epoch
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_neighbouring_seeds_share_no_epoch(list_source):
    """grain orders epoch e of seed s like epoch e - 1 of seed s + 1; the stream must not."""
    epochs = {}
    for seed in (-1, 0, 1, 2, 2**40):
        seen = indices(take(list_source(12), 9, seed=seed))
        epochs |= {(seed, e): tuple(seen[12 * e : 12 * e + 12]) for e in range(3)}
    assert len(set(epochs.values())) == len(epochs) == 15
    assert indices(take(list_source(12), 9, seed=2)) == indices(take(list_source(12), 9, seed=2))


def test_without_shuffling_the_order_is_the_source_s(list_source):
    config = dataclasses.replace(CONFIG, shuffle=False)
    assert indices(take(list_source(6), 3, config=config)) == [*range(6), *range(6)]


@pytest.mark.parametrize("start", [0, 4, 20, 7])
def test_resumes_from_any_position(list_source, start):
    source = list_source(10, damaged={3: "a", 7: "b"}, captions=3)
    whole = take(source, 10, with_text=True)
    again = take(source, 4, start_position=start, with_text=True)
    texts = np.concatenate([batch["captions"] for batch in whole]).tolist()
    assert np.concatenate([b["captions"] for b in again]).tolist() == texts[start : start + 16]
    assert indices(again) == indices(whole)[start : start + 16]


def test_position_counts_what_was_handed_out(list_source):
    batches = make_batches(list_source(10), CONFIG, 4, seed=0, start_position=8)
    assert batches.position == 8
    for expected in (12, 16, 20):
        next(batches)
        assert batches.position == expected
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
    batches.close()


@pytest.mark.parametrize(("batch_size", "processes"), [(7, 1), (8, 1), (19, 1), (38, 2)])
def test_reading_in_pieces_does_not_show(list_source, batch_size, processes):
    config = dataclasses.replace(CONFIG, shuffle=False)
    parts = [
        take(
            list_source(101),
            3,
            batch_size,
            config,
            start_position=5,
            process_index=h,
            process_count=processes,
        )
        for h in range(processes)
    ]
    seen = [i for batches in zip(*parts, strict=True) for b in batches for i in b["index"]]
    assert seen == [(5 + i) % 101 for i in range(3 * batch_size)]


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_global_batch_is_the_same_for_any_number_of_processes(list_source, processes):
    source = list_source(20, damaged={2: "a", 3: "a"}, captions=2)
    whole = take(source, 5, batch_size=6, start_position=9, with_text=True)
    parts = [
        take(
            source,
            5,
            batch_size=6,
            start_position=9,
            process_index=h,
            process_count=processes,
            with_text=True,
        )
        for h in range(processes)
    ]
    for k, batch in enumerate(whole):
        for name in batch:
            joined = np.concatenate([part[k][name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])


def test_other_number_of_processes_after_a_resume(list_source):
    source = list_source(20)
    whole = indices(take(source, 6, batch_size=4))
    halves = [
        take(source, 3, batch_size=4, start_position=12, process_index=h, process_count=2)
        for h in range(2)
    ]
    resumed = [i for pair in zip(*halves, strict=True) for part in pair for i in part["index"]]
    assert resumed == whole[12:24]


def test_threads_do_not_matter(list_source):
    source = list_source(40, damaged=dict.fromkeys(range(0, 40, 7), "a"), captions=3)
    streams, reports = [], []
    for threads in (0, 1, 8):
        report = SkipReport()
        config = dataclasses.replace(CONFIG, threads=threads)
        streams.append(take(source, 6, 5, config, report=report, with_text=True))
        reports.append(report.to_json())
    for other in streams[1:]:
        for ours, theirs in zip(streams[0], other, strict=True):
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
    assert reports[0] == reports[1] == reports[2]


def test_captions_are_drawn_by_position(list_source):
    texts = take(list_source(5, captions=3), 60, with_text=True)
    drawn = [text.split(".")[1] for batch in texts for text in batch["captions"]]
    counts = np.bincount(np.array(drawn, int), minlength=3)
    assert counts.sum() == 240 and counts.min() > 50
    assert len({tuple(drawn[i : i + 5]) for i in range(0, 240, 5)}) > 20


def test_flip_mirrors_about_half(list_source):
    plain = take(list_source(8), 20)
    flipped = take(list_source(8), 20, config=dataclasses.replace(CONFIG, flip=True))
    mirrored = 0
    for one, other in zip(plain, flipped, strict=True):
        for image, maybe in zip(one["image"], other["image"], strict=True):
            same = (image == maybe).all()
            assert same or (image[:, ::-1] == maybe).all()
            mirrored += not same
    assert 20 < mirrored < 60
    assert not any((batch["image"][:, :, -1] == 255).all(axis=(1, 2)).any() for batch in plain)


def test_what_lies_over_a_picture_is_mirrored_with_it(list_source):
    class Mapped(list_source):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return dataclasses.replace(example, maps={"red": example.image[..., 0].copy()})

    for batch in take(Mapped(8), 10, config=dataclasses.replace(CONFIG, flip=True)):
        np.testing.assert_array_equal(batch["red"], batch["image"][..., 0])


def test_a_damaged_sample_is_replaced_by_the_next_of_the_order(list_source):
    sound = indices(take(list_source(10), 5))
    report = SkipReport()
    damaged = {sound[3]: "a", sound[4]: "b", sound[9]: "a"}
    seen = indices(take(list_source(10, damaged), 5, report=report))
    first = [*sound[:3], sound[5], sound[5], *sound[5:9], sound[0]]
    assert seen[:10] == first
    assert report.counts() == {"a": 2, "b": 1}
    assert set(seen[10:]) <= set(range(10)) - set(damaged)


def test_a_sample_is_counted_once_over_epochs_and_replays(list_source):
    source, report = list_source(10, {1: "a", 5: "b"}), SkipReport()
    for _ in range(2):
        take(source, 10, report=report)
    assert report.counts() == {"a": 1, "b": 1}
    assert report.repaired["mended"].count == 1  # 0 and 5 would be, but 5 is damaged
    assert report.repaired["mended"].names == ("s0",)


def test_the_report_belongs_to_the_position_not_to_reading_ahead(list_source):
    source = list_source(200, dict.fromkeys(range(200), "a") | {})
    source.damaged = dict.fromkeys(range(0, 200, 2), "a")
    report = SkipReport()
    batches = make_batches(source, CONFIG, 4, seed=0, report=report)
    order = Stream(source, 0)
    for k in range(1, 6):
        next(batches)
        met = {i for p in range(4 * k) for i, *_ in order[p].record.damaged}
        assert report.total == len(met)
    batches.close()


@pytest.mark.parametrize("threads", [0, 4])
def test_nothing_left_is_one_sentence_with_the_reasons(list_source, threads):
    source = list_source(6, {i: "truncated" if i else "blank" for i in range(6)})
    batches = make_batches(source, dataclasses.replace(CONFIG, threads=threads), 2, seed=0)
    with pytest.raises(DataError) as caught:
        next(batches)
    message = str(caught.value)
    assert message.startswith("no usable sample left in list: 6 in a row are damaged (5 x trunc")
    assert "1 x blank" in message
    batches.close()
    with pytest.raises(DataError, match="no usable sample left in list"):
        probe(source)


def test_gives_up_after_many_in_a_row(list_source, monkeypatch):
    monkeypatch.setattr("contextdiff_jax.data.pipeline._GIVE_UP_AFTER", 5)
    source = list_source(100, dict.fromkeys(range(99), "a"))
    with pytest.raises(DataError, match="5 in a row are damaged"):
        take(source, 10)


@pytest.mark.parametrize("threads", [0, 4])
def test_errors_of_reading_reach_the_caller(list_source, threads):
    class Broken(list_source):
        def __getitem__(self, index):
            if index == 17:
                raise ConnectionError("storage is gone")
            return super().__getitem__(index)

    batches = make_batches(Broken(40), dataclasses.replace(CONFIG, threads=threads), 4, seed=0)
    with pytest.raises(ConnectionError, match="storage is gone"):
        for _ in range(11):
            next(batches)
    batches.close()


def test_errors_of_tokenizing_reach_the_caller(list_source):
    def tokenize(captions):
        raise RuntimeError("no such token")

    with pytest.raises(RuntimeError, match="no such token"):
        take(list_source(10), 1, tokenize=tokenize)


def test_probe_counts_what_it_passes_over(list_source):
    report = SkipReport()
    probe(list_source(10, {0: "a", 2: "b"}), report=report)
    assert report.counts() == {"a": 1, "b": 1}
    probe(list_source(1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size = 0: must be a positive multiple of 1 processes"),
        ({"batch_size": 4, "process_count": 3}, "batch_size = 4: .* multiple of 3 processes"),
        ({"batch_size": 4, "start_position": -1}, "start_position = -1"),
        ({"batch_size": 4, "process_count": 2, "process_index": 2}, "process_index = 2"),
    ],
)
def test_numbers_that_do_not_fit(list_source, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_batches(list_source(10), CONFIG, seed=0, **options)


def test_sources_that_are_too_small_or_too_large(list_source):
    for length in (0, 2**32 + 1):
        with pytest.raises(DataError, match=f"list has {length} samples"):
            Stream(list_source(length), 0)
    assert len({Stream(list_source(2**32), 0)._order[p] for p in range(10)}) == 10


def test_far_positions(list_source):
    """Ten years of training do not overflow."""
    far = 10**13
    batch = take(list_source(7), 1, start_position=far)[0]
    assert indices([batch]) == indices(take(list_source(7), 1, start_position=far))
    assert set(batch["index"]) <= set(range(7))

"""The report: what it counts, how often, and what it says."""

import json
import threading

import pytest

from contextdiff_jax.data.example import DamagedSample, SkipReport, sample_at_fault


def test_counts_by_reason_with_the_first_names():
    report = SkipReport()
    for i in range(7):
        report.skip("truncated", f"k{i}")
    report.skip("blank", "b")
    report.repair(("latin", "exif"), "r")
    report.damaged_file("ends early", "00002")
    assert report.total == 8
    assert report.counts() == {"truncated": 7, "blank": 1}
    assert report.summary() == [
        "8 samples skipped",
        "skipped: 7 x truncated (k0, k1, k2, k3, k4, ...)",
        "skipped: 1 x blank (b)",
        "repaired: 1 x latin (r)",
        "repaired: 1 x exif (r)",
        "damaged files: 1 x ends early (00002)",
    ]


def test_a_sample_with_an_index_counts_once_per_section():
    report = SkipReport()
    for index in (0, 7, 8, 32767, 32768, 10**9):
        for _ in range(3):
            report.skip("truncated", str(index), index)
            report.repair(("latin",), str(index), index)
    assert report.counts() == {"truncated": 6}
    assert report.repaired["latin"].count == 6


def test_json_round_trip_and_merge():
    report = SkipReport()
    report.skip("truncated", "a", 3)
    report.repair(("latin",), "b")
    report.damaged_file("empty", "c")
    value = json.loads(json.dumps(report.to_json()))
    assert value["total_skipped"] == 1
    again = SkipReport.from_json(value)
    assert again.summary() == report.summary()
    again.merge(report)
    assert again.counts() == {"truncated": 2}
    assert again.skipped["truncated"].names == ("a", "a")
    assert report.counts() == {"truncated": 1}


def test_threads_lose_no_count():
    report = SkipReport()

    def add(start: int) -> None:
        for i in range(start, start + 500):
            report.skip("truncated", str(i), i)

    threads = [threading.Thread(target=add, args=(250 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert report.total == 250 * 7 + 500


HOSTILE = "a\x1b]0;pwned\x07\u202e\x9b31m\nforged"


def test_names_cannot_command_a_terminal_or_forge_a_line():
    report = SkipReport()
    report.skip("truncated", HOSTILE)
    report.repair(("latin",), HOSTILE)
    report.damaged_file("empty", "x" * 10_000)
    assert all(line.isprintable() for line in report.summary())
    assert report.summary()[1] == (
        "skipped: 1 x truncated (a\\x1b]0;pwned\\x07\\u202e\\x9b31m\\nforged)"
    )
    assert len(report.files["empty"].names[0]) == 200
    damaged = DamagedSample(HOSTILE, "truncated")
    assert str(damaged).isprintable() and damaged.key.isprintable()


@pytest.mark.parametrize(
    "error", [RecursionError(), OverflowError(), AssertionError(), OSError(22, "x"), KeyError("k")]
)
def test_whatever_a_sample_raises_is_its_fault(error):
    with pytest.raises(DamagedSample) as caught, sample_at_fault(HOSTILE):
        raise error
    assert caught.value.reason == f"cannot be decoded ({type(error).__name__})"
    assert caught.value.__cause__ is error and caught.value.key.isprintable()


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), DamagedSample("k", "blank")])
def test_what_is_not_its_fault_or_is_named_already_stays(error):
    with pytest.raises(type(error)) as caught, sample_at_fault("k"):
        raise error
    assert caught.value is error

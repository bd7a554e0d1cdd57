"""Processes that read: the same stream, their errors, their end."""

import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source

CONFIG = DataConfig(resolution=8, processes=2)


def tokenize(captions):
    return {"lengths": np.array([len(caption) for caption in captions]), "pid": os.getpid()}


@pytest.mark.slow
def test_the_stream_is_that_of_one_process(tiny_shards):
    config = DataConfig("shards", str(tiny_shards), resolution=8)
    source = open_source(config)
    streams, reports = [], []
    for processes in (0, 2, 3):
        report = SkipReport()
        batches = make_batches(
            source,
            dataclasses.replace(config, processes=processes),
            6,
            seed=1,
            tokenize=tokenize,
            start_position=12,
            process_index=1,
            process_count=2,
            report=report,
            with_text=True,
        )
        streams.append(list(itertools.islice(batches, 7)))
        batches.close()
        reports.append((report.to_json(), batches.position))
    for other in streams[1:]:
        for ours, theirs in zip(streams[0], other, strict=True):
            assert list(ours) == list(theirs)
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
    assert reports[0] == reports[1] == reports[2]
    assert not multiprocessing.active_children()


def test_damaged_samples_are_counted_and_errors_reach_the_caller(list_source):
    report = SkipReport()
    source = list_source(40, damaged=dict.fromkeys(range(0, 40, 7), "a"))
    batches = make_batches(source, CONFIG, 4, seed=0, report=report)
    seen = [i for batch in itertools.islice(batches, 10) for i in batch["index"].tolist()]
    batches.close()
    assert not set(seen) & set(source.damaged)
    assert report.counts() == {"a": len(source.damaged)}
    lost = make_batches(list_source(3, dict.fromkeys(range(3), "blank")), CONFIG, 2, seed=0)
    with pytest.raises(DataError, match="no usable sample left in list: 3 in a row"):
        next(lost)
    lost.close()


def test_a_process_that_is_killed_is_one_sentence(list_source):
    batches = make_batches(list_source(40), CONFIG, 4, seed=0)
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGTERM)  # a notice of preemption: theirs to ignore
    for _ in range(6):
        next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"ended with exit code -9; .* lower data.processes"):
        for _ in range(50):
            next(batches)
    batches.close()


@pytest.mark.slow
def test_a_process_that_only_starts_is_not_ended_by_a_notice(list_source):
    """Without waiting for their first line: processes that have not run it yet ignore it too."""
    batches = make_batches(list_source(40), dataclasses.replace(CONFIG, processes=3), 4, seed=0)
    ended = threading.Event()

    def notify():
        told = set()
        while not ended.wait(0.001):
            for child in multiprocessing.active_children():
                if child.pid and child.pid not in told:
                    for notice in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                        os.kill(child.pid, notice)
                    told.add(child.pid)
        assert len(told) == 3

    thread = threading.Thread(target=notify)
    thread.start()
    try:
        assert len(list(itertools.islice(batches, 10))) == 10
    finally:
        ended.set()
        thread.join()
        batches.close()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_none_outlives_the_process_that_trains(tmp_path):
    code = f"""
        import multiprocessing, pathlib, time
        from contextdiff_jax.data.config import DataConfig
        from contextdiff_jax.data.pipeline import make_batches
        from contextdiff_jax.data.sources import open_source
        if __name__ == "__main__":
            config = DataConfig(resolution=16, processes=2)
            batches = make_batches(open_source(config), config, 4, seed=0)
            next(batches), next(batches)
            pids = [str(child.pid) for child in multiprocessing.active_children()]
            pathlib.Path({str(tmp_path / "pids")!r}).write_text(" ".join(pids))
            time.sleep(100)
    """
    script = tmp_path / "trains.py"
    script.write_text(textwrap.dedent(code))
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], env=environment) as trains:
        until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        alive = [runs(pid) for pid in pids]
        trains.kill()
    assert alive == [True, True]
    until(lambda: not any(map(runs, pids)))


def until(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Returns whether the process is there and no zombie."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def test_open_files_stay_with_their_process(tiny_shards):
    source = open_source(DataConfig("shards", str(tiny_shards), resolution=8))
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[8].image, source[8].image)
    assert copy._files._files.keys() != source._files._files.keys()

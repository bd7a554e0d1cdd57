"""The loop: resumption to the bit, preemption, failures that keep the evidence."""

import csv
import errno
import json
import math
import os
import signal

import jax
import numpy as np
import pytest

from contextdiff_jax.parallel import distributed
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.system.interruption import Interrupted
from contextdiff_jax.training.checkpoints import CheckpointError, load_tree
from contextdiff_jax.training.failure import NotFinite


def same(one, other):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def rows(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_learns_and_writes_what_it_promises(make_trainer, stream, tmp_path):
    trainer = make_trainer(200, log_every=50, preview_every=100, diagnose_every=100, save_every=100)
    trainer.train(stream)
    loss = [float(row["value"]) for row in rows(tmp_path / "run") if row["name"] == "loss"]
    assert loss[-1] < 0.2 * loss[0]
    names = {row["name"] for row in rows(tmp_path / "run")}
    assert {"images_per_second", "learning_rate", "gradient_norm", "bias", "size"} <= names
    assert (tmp_path / "run/preview/00000200.png").exists()
    assert "w" in (tmp_path / "run/overview.txt").read_text()
    assert any(p.name.startswith("events") for p in (tmp_path / "run").iterdir())


def test_the_overview_counts_the_bytes_of_each_device(make_trainer, stream, tmp_path):
    mesh = make_mesh(MeshConfig(2, 4, 1))
    make_trainer(1, batch_size=2048, mesh=mesh).train(lambda at: stream(at, batch_size=2048))
    lines = (tmp_path / "run/overview.txt").read_text().splitlines()[-5:]
    assert [line.split()[0] for line in lines] == ["params", "ema", "optimizer", "frozen", "batch"]
    # 2048 examples of 8 + 1 float32 over 8 devices
    assert lines[-1].split()[1:] == ["0.0", "MiB", "per", "device", "of", "0.1"]


def test_the_screen_names_each_phase_and_a_line_for_each_network(
    make_trainer, stream, tmp_path, caplog
):
    caplog.set_level("INFO", "absl")
    make_trainer(4, preview_every=2, diagnose_every=2).train(stream)
    for what in ("step", "diagnostics", "preview"):  # once each, not every time
        assert caplog.text.count(f"compiling and doing the first {what} ...") == 1
        assert caplog.text.count(f"compiling and doing the first {what} took") == 1
    assert "overview.txt" in caplog.text and "+---" not in caplog.text


def test_what_cannot_fit_is_refused_before_anything_is_placed(make_trainer, monkeypatch):
    def forbidden(*args):
        raise AssertionError("placed")

    monkeypatch.setattr(distributed, "place", forbidden)
    monkeypatch.setattr(jax.Device, "memory_stats", lambda self: {"bytes_limit": 1024})
    with pytest.raises(ValueError, match=r"\(params .*, frozen .*mesh.fsdp = 1: at least 4 is"):
        make_trainer(1, mesh=make_mesh(MeshConfig()))
    with pytest.raises(AssertionError, match="placed"):
        make_trainer(1, mesh=make_mesh(MeshConfig(1, 4, 2)))


def test_resumed_run_ends_bit_identical(make_trainer, stream, tmp_path, caplog):
    whole = make_trainer(12, directory=tmp_path / "whole").train(stream)
    make_trainer(6, directory=tmp_path / "parts").train(stream)
    caplog.set_level("INFO", "absl")
    resumed = make_trainer(12, directory=tmp_path / "parts").train(stream)
    assert same(whole, resumed)
    assert "resumed at step 6" in caplog.text


def test_rows_of_lost_work_are_dropped(make_trainer, stream, tmp_path):
    make_trainer(8).train(stream)
    with (tmp_path / "run/metrics.csv").open("a") as file:
        file.write("10,loss,1.0\r\n12,lo")
    make_trainer(12).train(stream)
    assert [row["step"] for row in rows(tmp_path / "run") if row["name"] == "loss"] == [
        "2",
        "4",
        "6",
        "8",
        "10",
        "12",
    ]


class Lost(Exception):
    """Stands for a kill: nothing is saved."""


@pytest.mark.parametrize("lost_at", [6, 7, 9, 11])
def test_rows_of_a_killed_run_are_those_of_an_undisturbed_one(
    lost_at, make_trainer, stream, tmp_path
):
    """Saved at 3, 6, 9 and 12, within the windows that end at 5, 10 and 14."""

    class Losing(stream):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == lost_at + 2:  # which are ahead, on the device
                    raise Lost
                yield batch

    settings = {"log_every": 5, "save_every": 3}
    make_trainer(14, directory=tmp_path / "whole", **settings).train(stream)
    lost = make_trainer(14, **settings)
    with pytest.raises(Lost):
        lost.train(Losing)
    lost.checkpoints.close()
    make_trainer(14, **settings).train(stream)
    found, expected = (
        [row for row in rows(tmp_path / name) if row["name"] != "images_per_second"]
        for name in ("run", "whole")
    )
    assert found == expected
    assert {row["step"] for row in found} == {"5", "10", "14"}


def test_a_run_goes_on_with_another_batch_size_after_the_examples_it_has_read(make_trainer, stream):
    make_trainer(4).train(stream)
    positions = []
    for steps, size in ((8, 4), (10, 16)):
        open_batches = lambda at, size=size: positions.append(at) or stream(at, batch_size=size)  # noqa: E731
        make_trainer(steps, batch_size=size).train(open_batches)
    assert positions == [4 * 8, 4 * 8 + 4 * 4]
    assert make_trainer(10).start()[1] == 4 * 8 + 4 * 4 + 2 * 16


def test_finished_run_does_nothing(make_trainer, stream):
    make_trainer(4).train(stream)

    def forbidden(position):
        raise AssertionError("a finished run must not open its data")

    make_trainer(4).train(forbidden)


@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGHUP])
def test_a_notice_saves_and_says_so(notice, make_trainer, stream, tmp_path):
    class Terminating(stream):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if number == 5:
                    os.kill(os.getpid(), notice)
                yield batch

    with pytest.raises(Interrupted, match="same command resumes") as stop:
        make_trainer(100).train(Terminating)
    trainer = make_trainer(100)
    assert trainer.checkpoints.latest_step() == stop.value.step < 100
    state, position = trainer.start()
    assert position == 8 * stop.value.step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_loss_not_finite_keeps_the_last_sound_state(make_trainer, stream, tmp_path):
    sound = make_trainer(6, directory=tmp_path / "sound").train(stream)
    with pytest.raises(NotFinite, match="not finite at step 7") as error:
        make_trainer(20).train(lambda position: stream(position, poison_at=6 * 8 + 3))
    assert "starts at example 48" in str(error.value)
    assert "goes on from the checkpoint of step 4" in str(error.value)
    kept = load_tree(tmp_path / "run/failure/state")
    assert same(kept["params"], sound.params)
    report = json.loads((tmp_path / "run/failure/report.json").read_text())
    assert report["step"] == 7 and report["first_example"] == 48
    # The rows of metrics.csv would have been of steps 2, 4, 6 and 8: those of 7 and 8 are here.
    assert [math.isfinite(row["loss"]) for row in report["metrics"]] == [False, True]


def test_the_step_that_is_not_finite_has_the_number_of_its_row(make_trainer, stream, tmp_path):
    """Steps count from 1 in metrics.csv: where every step has a row, its own is the next."""
    with pytest.raises(NotFinite, match="at step 3;.*goes on from the checkpoint of step 2"):
        make_trainer(9, log_every=1, save_every=1).train(lambda at: stream(at, poison_at=2 * 8))
    assert [row["step"] for row in rows(tmp_path / "run") if row["name"] == "loss"] == ["1", "2"]


def test_a_run_goes_on_after_a_loss_that_was_not_finite(make_trainer, stream, tmp_path):
    sound = make_trainer(12, directory=tmp_path / "sound").train(stream)
    for _ in range(2):  # with the evidence of the first failure in its place
        with pytest.raises(NotFinite, match="at step 7"):
            make_trainer(12).train(lambda at: stream(at, poison_at=6 * 8))
    assert same(make_trainer(12).train(stream), sound)


def test_full_disk_leaves_the_previous_checkpoint(make_trainer, stream, monkeypatch):
    first = make_trainer(4)
    first.train(stream)
    first.checkpoints.close()
    trainer = make_trainer(12)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device.*make room"):
        trainer.train(stream)
    state, position = make_trainer(12).start()
    assert int(state.step) == 4 and position == 32


def test_an_unreadable_checkpoint_is_never_a_fresh_start(make_trainer, stream, tmp_path):
    make_trainer(4).train(stream)
    for file in (tmp_path / "run/checkpoints/4/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        make_trainer(8).train(stream)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)])
def test_every_mesh_trains_the_same(shape, make_trainer, stream, tmp_path):
    one = make_trainer(3, directory=tmp_path / "one").train(stream)
    trainer = make_trainer(3, mesh=make_mesh(MeshConfig(*shape)))
    other = trainer.train(stream)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    whole = other.params["w"].sharding.shard_shape((8, 16))
    assert whole == (8 // shape[1], 16 // shape[2])


def test_checkpoints_move_between_meshes(make_trainer, stream, tmp_path):
    def losses(directory):
        return [float(row["value"]) for row in rows(directory) if row["name"] == "loss"]

    one = make_trainer(8, directory=tmp_path / "one", log_every=1).train(stream)
    directory, positions = tmp_path / "moving", []
    for steps, shape in ((4, (2, 4, 1)), (6, (1, 2, 2)), (7, (1, 1, 1)), (8, (2, 2, 2))):
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])
        trainer = make_trainer(steps, directory=directory, mesh=mesh, log_every=1)
        last = trainer.train(lambda at: positions.append(at) or stream(at))
    assert positions == [0, 32, 48, 56]
    np.testing.assert_allclose(losses(directory), losses(tmp_path / "one"), rtol=1e-5)
    np.testing.assert_allclose(last.params["w"], one.params["w"], rtol=1e-4, atol=1e-6)
    assert len(last.params["w"].sharding.device_set) == 8


class Watched:
    """Stands for an array on the device; notes every fetch of its value and every wait for it."""

    def __init__(self, array, note):
        self.array, self._note = array, note

    def _fetch(self):
        self._note()
        return np.asarray(self.array)

    def __array__(self, *args, **kwargs):
        return self._fetch()

    def __float__(self):
        return float(self._fetch())

    def __int__(self):
        return int(self._fetch())

    def __bool__(self):
        return bool(self._fetch())

    def block_until_ready(self):
        self._note()
        return self


@pytest.fixture
def watched_run(make_trainer, stream, monkeypatch):
    """Trains 12 steps, a report every 4; returns what is fetched, and pulled, at which step.

    The results of every step are handed to the loop as Watched, so that a fetch shows on CPU too,
    where transfer guards see none (arrays lie in the host's memory). They do see transfers to the
    device, which outside start and reports are forbidden.
    """

    def run(**changes):
        settings = {"log_every": 4, "save_every": 100} | changes
        trainer = make_trainer(12, **settings)
        fetched, pulled, done = set(), [], [0]
        computed, reported = trainer._step, trainer._report
        state, position = trainer.start()

        def watch(tree):
            return jax.tree.map(lambda x: Watched(x, lambda: fetched.add(done[0])), tree)

        def step(state, frozen, batch):
            unwatched = jax.tree.map(
                lambda x: x.array, state, is_leaf=lambda x: isinstance(x, Watched)
            )
            done[0] += 1
            pulled.append(len(batches))
            return watch(computed(unwatched, frozen, batch))

        batches = []

        class Counted(stream):
            def __iter__(self):
                for batch in super().__iter__():
                    batches.append(batch)
                    yield batch

        def report(*args):
            with jax.transfer_guard("allow"):
                reported(*args)

        monkeypatch.setattr(trainer, "_step", step)
        monkeypatch.setattr(trainer, "_report", report)
        monkeypatch.setattr(trainer, "start", lambda: (watch(state), position))
        monkeypatch.setattr(trainer, "describe", lambda *args: None)
        monkeypatch.setattr(trainer.checkpoints, "save", lambda *args: None)
        with jax.transfer_guard("disallow"):
            trainer.train(Counted)
        return fetched, pulled

    return run


def test_the_host_waits_only_for_reports(watched_run):
    # Before the first step for its number; after it for the clock; then for reports.
    assert watched_run()[0] == {0, 1, 4, 8, 12}


def test_batches_are_on_the_device_before_their_step(watched_run):
    assert watched_run()[1] == [3 + step for step in range(12)]


def test_a_transfer_to_the_device_in_a_step_is_noticed(watched_run, monkeypatch):
    place = lambda sharding, value, *shape: value  # noqa: E731
    monkeypatch.setattr(jax, "make_array_from_process_local_data", place)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        watched_run()

"""Looking at a run's checkpoints leaves a save that is under way alone; a run has one owner."""

import time

import pytest

from contextdiff_jax.training.checkpoints import CheckpointError, Checkpoints, newest_metadata


def test_a_look_at_a_run_removes_nothing(make_trainer, stream, tmp_path):
    make_trainer(4, directory=tmp_path, save_every=4).train(stream)
    folder = tmp_path / "checkpoints"
    (folder / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    assert newest_metadata(folder)["step"] == 4
    assert sorted(folder.rglob("*")) == before
    # The run itself does, when it starts again: Orbax, in the background.
    again = Checkpoints(folder)
    deadline = time.monotonic() + 30
    while (folder / "8.orbax-checkpoint-tmp").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    again.close()
    assert not (folder / "8.orbax-checkpoint-tmp").exists()


def test_a_look_makes_no_folder(tmp_path):
    assert newest_metadata(tmp_path / "checkpoints") is None
    assert not list(tmp_path.iterdir())


def test_who_began_later_owns_the_run(make_trainer, stream, tmp_path):
    first = make_trainer(8, directory=tmp_path, save_every=4)

    def second_starts(position):
        make_trainer(4, directory=tmp_path, save_every=4).train(stream)
        return stream(position)

    with pytest.raises(CheckpointError, match="another process now trains in .*; this one stops"):
        first.train(second_starts)
    assert newest_metadata(tmp_path / "checkpoints")["step"] == 4

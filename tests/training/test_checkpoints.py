"""Looking at a run's checkpoints leaves a save that is under way alone."""

from contextdiff_jax.training.checkpoints import Checkpoints, newest_metadata


def test_a_look_at_a_run_removes_nothing(make_trainer, stream, tmp_path):
    make_trainer(4, directory=tmp_path, save_every=4).train(stream)
    folder = tmp_path / "checkpoints"
    (folder / "8.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    before = sorted(folder.rglob("*"))
    assert newest_metadata(folder)["step"] == 4
    assert sorted(folder.rglob("*")) == before
    Checkpoints(folder).close()  # the run itself does, when it starts again
    assert not (folder / "8.orbax-checkpoint-tmp").exists()


def test_a_look_makes_no_folder(tmp_path):
    assert newest_metadata(tmp_path / "checkpoints") is None
    assert not list(tmp_path.iterdir())

"""Damaged checkpoints: found, named, never read; the one before is used where it is sound."""

import contextlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.training import checkpoints as module
from contextdiff_jax.training import checksums
from contextdiff_jax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    load_tree,
    newest_ema,
    newest_metadata,
    save_tree,
)
from contextdiff_jax.training.state import TrainState


def state_of(step, width=64):
    w = jax.random.normal(jax.random.key(step), (width, 8))
    return TrainState(jnp.int32(step), {"w": w}, {"w": 2 * w}, {"m": w}, jnp.int32(-1))


def abstract(width=64):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0, width)
    )


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for step in (8, 12):
            checkpoints.save(state_of(step), 10 * step, {"run": "base"})
        checkpoints.wait()
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


@pytest.fixture
def said(caplog):
    """What is logged; nothing counts as said before."""
    module._warn_once.cache_clear()
    return caplog


def restored(folder):
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        return checkpoints.restore(abstract())


def largest(step):
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size)


def flip(path, byte=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if byte is None else byte] ^= 16
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = {
    "a bit of an array": lambda step: flip(largest(step)),
    "a truncated array": lambda step: truncate(largest(step)),
    "a lost array": lambda step: largest(step).unlink(),
    "a bit of the manifest": lambda step: flip(step / "state/manifest.ocdbt"),
    "no manifest": lambda step: (step / "state/manifest.ocdbt").unlink(),
    "a bit of the tree": lambda step: flip(step / "state/_METADATA"),
    "no tree": lambda step: (step / "state/_METADATA").unlink(),
    "a bit of the metadata": lambda step: flip(step / "metadata/metadata"),
    "garbage for metadata": lambda step: (step / "metadata/metadata").write_bytes(b"\xff{["),
    "no metadata": lambda step: shutil.rmtree(step / "metadata"),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "a bit of Orbax's record": lambda step: flip(step / "_CHECKPOINT_METADATA"),
    "garbage for Orbax's record": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b"\xff"),
    "a bit of the commit": lambda step: flip(step / "commit_success.txt"),
    "a bit of the checksums": lambda step: flip(step / checksums.NAME),
    "no checksums": lambda step: (step / checksums.NAME).unlink(),
    "a file too many": lambda step: (step / "state/d/more").write_bytes(b""),
    "an empty step": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_one_before_is_used_and_the_damaged_kept_aside(damage, folder, said):
    damage(folder / "12")
    aside = sorted(p.relative_to(folder / "12") for p in (folder / "12").rglob("*"))
    assert newest_metadata(folder)["step"] == 8  # a look: moves nothing
    assert "step 12 in" in said.text and "the one of step 8 is used" in said.text
    np.testing.assert_array_equal(newest_ema(folder)[0]["w"], state_of(8).ema["w"])
    assert sorted(p.name for p in folder.iterdir()) == ["12", "8"]
    said.clear()
    found = restored(folder)
    assert found.position == 80
    jax.tree.map(np.testing.assert_array_equal, found.state, state_of(8))
    assert re.search(
        "step 12 is damaged .*moved to .*12.damaged; .*steps lost and done again: 4", said.text
    )
    assert sorted(p.name for p in folder.iterdir()) == ["12.damaged", "8"]
    kept = folder / "12.damaged"
    assert sorted(p.relative_to(kept) for p in kept.rglob("*")) == aside
    said.clear()
    assert restored(folder).position == 80 and "damaged" not in said.text


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_without_a_sound_one_nothing_moves(damage, folder):
    shutil.rmtree(folder / "8")
    damage(folder / "12")
    for read in (restored, newest_metadata, newest_ema):
        with pytest.raises(CheckpointError, match="no sound checkpoint .12/.*put a sound copy"):
            read(folder)
    assert [p.name for p in folder.iterdir()] == ["12"]


def test_the_step_is_saved_again_beside_the_damaged(folder):
    for _ in range(2):
        flip(largest(folder / "12"))
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            assert int(checkpoints.restore(abstract()).state.step) == 8
            checkpoints.save(state_of(12), 120, {})
            checkpoints.wait()
    assert restored(folder).position == 120
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["12", "12.damaged", "12.damaged.2", "8"]


def test_one_that_cannot_be_moved_ends_in_a_sentence(folder, monkeypatch):
    def no_rights(*_):
        raise PermissionError(13, "Permission denied")

    flip(largest(folder / "12"))
    monkeypatch.setattr("os.rename", no_rights)
    with pytest.raises(CheckpointError, match="12 is damaged .*cannot be moved .*move it away"):
        restored(folder)


def test_a_config_that_does_not_fit_is_no_damage(folder):
    refused = pytest.raises(CheckpointError, match="12 cannot be read into this config's networks")
    with contextlib.closing(Checkpoints(folder)) as checkpoints, refused:
        checkpoints.restore(abstract(width=32))
    assert sorted(p.name for p in folder.iterdir()) == ["12", "8"]


def of_earlier_version(step):
    """Makes a step what was saved before there were checksums."""
    (step / checksums.NAME).unlink()
    path = step / "metadata/metadata"
    path.write_text(path.read_text().replace('"checksums": true, ', ""))


def test_checkpoints_without_checksums_are_read_and_it_is_said(folder, said):
    of_earlier_version(folder / "12")
    assert newest_metadata(folder)["step"] == 12 and restored(folder).position == 120
    assert said.text.count("12 was saved without checksums: read as it is") == 1
    shutil.rmtree(folder / "12/metadata")
    assert restored(folder).position == 80


@pytest.mark.parametrize("name", ["", "/manifest.ocdbt", "/_METADATA", "/ocdbt.process_0"])
def test_damage_to_one_without_checksums_ends_in_a_sentence(name, folder):
    of_earlier_version(folder / "12")
    path = folder / f"12/state{name}"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for read in (restored, newest_ema):
        with pytest.raises(CheckpointError, match="(?s)12.* cannot be read.*if .* damaged"):
            read(folder)


def test_a_kill_leaves_a_step_that_counts_with_checksums_or_none(folder, said):
    """Before the commit the step does not count; after it, two files may be unlisted."""
    _, listed = checksums._read(folder / "12")
    checksums._write(folder / "12", {n: v for n, v in listed.items() if n not in module._OF_COMMIT})
    assert restored(folder).position == 120 and not said.text
    (folder / "12").rename(folder / "12.orbax-checkpoint-tmp")
    assert restored(folder).position == 80 and not said.text


def test_every_step_is_committed_with_its_checksums(folder, monkeypatch):
    """What a kill right after the commit leaves: the checksums, but of what the commit wrote."""
    monkeypatch.setattr(checksums, "add", lambda *_: None)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(state_of(16), 160, {})
        checkpoints.wait()
    _, listed = checksums._read(folder / "16")
    assert set(checksums.files_below(folder / "16")) - set(listed) == set(module._OF_COMMIT)
    assert restored(folder).position == 160


def test_a_step_whose_checksums_cannot_be_written_does_not_count(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksums, "record", full)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(state_of(16), 160, {})
        with pytest.raises(CheckpointError, match="step 16 could not be written.*No space left"):
            checkpoints.wait()
    assert newest_metadata(folder)["step"] == 12


def test_what_cannot_be_read_for_another_reason_is_no_damage(folder, monkeypatch):
    def busy(*_):
        raise OSError(23, "Too many open files in system")

    monkeypatch.setattr(checksums, "_of_chunk", busy)
    with pytest.raises(CheckpointError, match="12 cannot be read .*Too many open files"):
        restored(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["12", "8"]


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()])
def test_a_damaged_tree_is_refused(damage, tmp_path, said):
    tree = {"w": np.arange(2000.0)}
    save_tree(tmp_path / "tree", tree)
    np.testing.assert_array_equal(load_tree(tmp_path / "tree")["w"], tree["w"])
    damaged = largest(tmp_path / "tree")
    damage(damaged)
    with pytest.raises(CheckpointError, match=f"tree is damaged: .*{damaged.name}"):
        load_tree(tmp_path / "tree")
    save_tree(tmp_path / "tree", tree)
    (tmp_path / "tree" / checksums.NAME).unlink()
    np.testing.assert_array_equal(load_tree(tmp_path / "tree")["w"], tree["w"])
    assert "tree was saved without checksums" in said.text

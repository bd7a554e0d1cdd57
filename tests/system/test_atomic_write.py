"""What killed writers leave is removed, and nothing that is another's or still written."""

import os
import time
import uuid

import pytest

from contextdiff_jax import entry
from contextdiff_jax.system.atomic_write import sweep, written_whole


def left(folder, name, days):
    path = folder / name
    path.write_text("half")
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))
    return path


def test_only_our_own_old_remains_go(tmp_path):
    key = uuid.uuid4().hex
    gone = [left(tmp_path, f"results.json.{key}.tmp", 2), left(tmp_path, f".writable.{key}", 2)]
    stays = [
        left(tmp_path, f"results.csv.{key}.tmp", 0.5),  # another may be writing it
        left(tmp_path, "notes.tmp", 2),
        left(tmp_path, f"{key}.tmp.txt", 2),
        left(tmp_path, "results.json", 2),
    ]
    entry.check_writable(tmp_path, "workdir")
    assert sorted(tmp_path.iterdir()) == sorted(stays)
    assert not any(path.exists() for path in gone)


def test_what_a_killed_writer_leaves_is_known_as_ours(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "a.png") as unfinished:
        name = unfinished.name
        raise KeyboardInterrupt
    path = left(tmp_path, name, 2)
    sweep(tmp_path)
    assert not path.exists()

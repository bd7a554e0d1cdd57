"""The count of found bits counts what is found, and sees what is not."""

from benchmarks import bit_flips
from contextdiff_jax.training import checksums


def test_all_are_found(capsys):
    assert bit_flips.main(["--flips=8", "--seed=1"]) == 0
    assert capsys.readouterr().out == "checkpoints: 8/8 found\nexports: 8/8 found\n"


def test_without_checksums_some_are_not(capsys, monkeypatch):
    monkeypatch.setattr(checksums, "damage", lambda *_, **__: None)
    assert bit_flips.main(["--flips=8", "--seed=1"]) == 1
    out = capsys.readouterr().out
    assert "wrong" in out and "checkpoints: 8/8" not in out and "exports: 8/8" not in out

"""Rows of bits per dimension: stored once, read back in order, summed up, compared in pairs."""

import numpy as np
import pytest

from contextdiff_jax.evaluation.bound_rows import (
    Rows,
    paired_difference,
    read_rows,
    summary,
    write_rows,
)

RNG = np.random.default_rng(0)


def rows(*index):
    n = len(index)
    prior, terms, mse = RNG.random(n), RNG.random((n, 4)), RNG.random((n, 4))
    return Rows(np.array(index), prior, terms, mse)


def test_files_join_in_the_order_of_the_images(tmp_path):
    assert read_rows(tmp_path / "none") is None
    late, early = rows(7, 9), rows(0, 3, 4)
    write_rows(tmp_path, late)
    write_rows(tmp_path, early)
    (tmp_path / "00000010-00000011.npz.abc.tmp").write_bytes(b"half")  # not read
    found = read_rows(tmp_path)
    assert found.index.tolist() == [0, 3, 4, 7, 9]
    np.testing.assert_allclose(found.terms, np.concatenate([early.terms, late.terms]), rtol=1e-6)
    np.testing.assert_allclose(found.total[3], late.prior[0] + late.terms[0].sum(), rtol=1e-6)
    assert read_rows(tmp_path, count=4).index.tolist() == [0, 3]
    assert read_rows(tmp_path, count=0) is None


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    write_rows(tmp_path, rows(0, 1, 2))
    write_rows(tmp_path, rows(2, 3))
    with pytest.raises(ValueError, match="holds image 2 twice: remove one"):
        read_rows(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write_rows(tmp_path, rows(0, 1))
    file = tmp_path / "00000000-00000001.npz"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="00000000-00000001.npz cannot be read: .*; remove it"):
        read_rows(tmp_path)


def test_summary():
    made, snr = rows(0, 1, 2, 3, 4), np.array([0.1, 1, 5, 9])
    found = summary(made, [8, 5, 2, 1], snr)
    total = made.prior + made.terms.sum(1)
    assert found["bits_per_dim"] == pytest.approx(total.mean())
    assert found["standard_error"] == pytest.approx(total.std(ddof=1) / np.sqrt(5))
    assert found["prior"] + found["kl"] + found["decoder"] == pytest.approx(total.mean())
    assert found["decoder"] == pytest.approx(made.terms[:, 3].mean())
    steps = found["per_timestep"]
    assert steps["t"] == [8, 5, 2, 1] and found["images"] == 5
    assert sum(steps["bits_per_dim"]) + found["prior"] == pytest.approx(total.mean())
    np.testing.assert_allclose(steps["eps_mse"], snr * made.x0_mse.mean(0))
    alone = summary(rows(0), [8, 5, 2, 1], snr)
    assert alone["standard_error"] is None and alone["per_timestep"]["standard_error"] == [None] * 4


def test_pairs_over_the_images_both_have():
    ours = rows(0, 1, 2, 3)
    theirs = Rows(
        np.array([1, 2, 3, 9]), *(np.roll(v, -1, 0) for v in (ours.prior, ours.terms, ours.x0_mse))
    )
    theirs.prior[:3] += [0.1, 0.2, 0.3]
    found = paired_difference(ours, theirs)
    assert found["images"] == 3
    assert found["difference"] == pytest.approx(-0.2)
    assert found["standard_error"] == pytest.approx(0.1 / np.sqrt(3))
    with pytest.raises(ValueError, match="no image in common"):
        paired_difference(ours, rows(20, 21))

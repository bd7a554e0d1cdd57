"""ADM's measures against their formulas, and the files of its evaluator."""

import types

import numpy as np
import pytest
from scipy import linalg, special

from contextdiff_jax.evaluation import adm, inception_score
from contextdiff_jax.evaluation.adm_batches import read_batch, write_batch
from contextdiff_jax.evaluation.features import FeatureFiles
from contextdiff_jax.evaluation.frechet import moments_of

NETWORK = types.SimpleNamespace(
    layer="2048",
    distance_name="FID",
    extractor=types.SimpleNamespace(layers=("2048", "logits_unbiased", "spatial")),
)


def fid(first, second):
    """As pytorch-fid and ADM's evaluator write it."""
    root = linalg.sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False)).real
    shift = first.mean(0) - second.mean(0)
    traces = np.trace(np.cov(first, rowvar=False)) + np.trace(np.cov(second, rowvar=False))
    return shift @ shift + traces - 2 * np.trace(root)


def share_within(points, others):
    """Which part of `others` lies in a ball around `points`, as far as the third neighbour."""
    between = np.linalg.norm(points[:, None] - points[None], axis=-1)
    radii = np.sort(between, axis=1)[:, 3]
    distances = np.linalg.norm(others[:, None] - points[None], axis=-1)
    return (distances <= radii).any(1).mean()


@pytest.fixture
def drawn(tmp_path):
    """Features of 300 pictures in two files, and all of them."""
    rng = np.random.default_rng(0)
    found = {
        "2048": rng.normal(size=(300, 5)) + 0.3,
        "spatial": rng.exponential(size=(300, 7)),
        "logits_unbiased": 2 * rng.normal(size=(300, 6)),
    }
    for start in (0, 256):
        part = {name: array[start : start + 256] for name, array in found.items()}
        np.savez(tmp_path / f"{start:06d}.npz", **part)
    return FeatureFiles(tmp_path, 300), found


def test_measures_are_their_formulas(drawn, monkeypatch):
    monkeypatch.setattr(inception_score, "ADM_PART", 128)  # the last part has 44
    files, found = drawn
    rng = np.random.default_rng(1)
    whole, maps = rng.normal(size=(400, 5)), rng.exponential(size=(400, 7))
    some = whole[:200]
    real = adm.Real(moments_of([whole]), moments_of([maps[:150], maps[150:]]), some)
    figures = adm.measures(files, real, NETWORK)
    assert figures["FID"] == pytest.approx(fid(found["2048"], whole), rel=1e-9)
    assert figures["sFID"] == pytest.approx(fid(found["spatial"], maps), rel=1e-9)
    scores = []
    for start in (0, 128, 256):
        p = special.softmax(found["logits_unbiased"][start : start + 128], axis=1)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    assert figures["Inception Score"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert figures["precision"] == share_within(some, found["2048"])
    assert figures["recall"] == share_within(found["2048"], some)
    assert 0.5 < figures["precision"] < 1 and 0.5 < figures["recall"] < 1


def test_a_ball_s_edge_belongs_to_it(tmp_path):
    """Features whose third neighbours are as far as the drawn ones: nothing rounds."""
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    found = np.array([[6.0], [60.0], [60.5], [61.0]])
    np.savez(tmp_path / "000000.npz", **{"2048": found, "spatial": found})
    network = types.SimpleNamespace(
        **vars(NETWORK) | {"extractor": types.SimpleNamespace(layers=())}
    )
    moments = moments_of([real])
    figures = adm.measures(FeatureFiles(tmp_path, 4), adm.Real(moments, moments, real), network)
    assert figures["precision"] == 0.25
    assert "Inception Score" not in figures


def test_batches_are_read_by_numpy_and_again_here(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    path = tmp_path / "samples.npz"
    write_batch(path, (pictures[:3], pictures[3:]), pictures.shape, np.arange(5) % 2)
    with np.load(path, allow_pickle=False) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(stored["arr_0"], pictures)
        np.testing.assert_array_equal(stored["arr_1"], [0, 1, 0, 1, 0])
    found = read_batch(path)
    np.testing.assert_array_equal(found.pictures, pictures)
    assert found.pooled is None and found.spatial is None


def test_a_batch_that_stops_short_is_not_there(tmp_path):
    def parts():
        yield np.zeros((1, 4, 4, 3), np.uint8)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        write_batch(tmp_path / "samples.npz", parts(), (2, 4, 4, 3))
    assert not list(tmp_path.glob("*.npz"))


GOOD = {
    "arr_0": np.zeros((3, 4, 4, 3), np.uint8),
    "mu": np.zeros(5),
    "sigma": np.eye(5),
    "mu_s": np.zeros(7),
    "sigma_s": np.eye(7),
}


def test_moments_of_a_reference_are_read(tmp_path):
    np.savez(tmp_path / "reference.npz", **GOOD)
    found = read_batch(tmp_path / "reference.npz")
    assert found.pooled.mean.shape == (5,) and found.spatial.covariance.shape == (7, 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arr_0": None}, "arr_0, its pictures, is missing"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64 of .*; must be uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "arr_0 holds no picture"),
        ({"sigma_s": None}, "it has mu, but not sigma_s"),
        ({"sigma": np.eye(4)}, r"mu has shape \(5,\), sigma \(4, 4\)"),
        ({"mu_s": np.full(7, np.nan)}, "mu_s must hold finite floats"),
    ],
)
def test_what_is_no_batch_is_refused(changes, sentence, tmp_path):
    path = tmp_path / "reference.npz"
    kept = {key: array for key, array in (GOOD | changes).items() if array is not None}
    np.savez(path, **kept)
    with pytest.raises(ValueError, match=f"is no batch of ADM's evaluator: {sentence}"):
        read_batch(path)

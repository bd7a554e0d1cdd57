"""ADM's measures against their formulas, and the files of its evaluator."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy import linalg, special

from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.evaluation import adm, adm_batches, extraction, inception_score
from contextdiff_jax.evaluation.adm_batches import read_batch, write_batch
from contextdiff_jax.evaluation.evaluation import Settings
from contextdiff_jax.evaluation.features import FeatureFiles
from contextdiff_jax.evaluation.frechet import moments_of
from contextdiff_jax.generation.generate import Pictures
from contextdiff_jax.system.interruption import Watch

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
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    np.savez(tmp_path / "reference.npz", **GOOD | {"arr_0": np.asfortranarray(pictures)})
    found = read_batch(tmp_path / "reference.npz")
    assert found.pooled.mean.shape == (5,) and found.spatial.covariance.shape == (7, 7)
    np.testing.assert_array_equal(found.pictures, pictures)
    assert found.pictures.data.c_contiguous  # as its digest needs


def test_a_batch_may_be_as_large_as_that_of_512_pixels(tmp_path, monkeypatch):
    """Ten thousand of them are more than other files of arrays may have."""
    assert adm_batches._MOST_BYTES > 10_000 * 512 * 512 * 3
    np.savez(tmp_path / "reference.npz", **GOOD)
    monkeypatch.setattr(adm_batches, "_MOST_BYTES", 100)
    with pytest.raises(ValueError, match="arr_0 claims to be uint8 of .* more than 100 bytes"):
        read_batch(tmp_path / "reference.npz")


def test_moments_of_other_maps_are_refused(tmp_path):
    """Of either kind, before anything is drawn."""
    widths = {"spatial": 7}
    network = types.SimpleNamespace(dimension=5, width=widths.get)
    np.savez(tmp_path / "reference.npz", **GOOD)
    batch = read_batch(tmp_path / "reference.npz")
    adm._check_width(batch, network, "r.npz")
    widths["spatial"] = 2023
    with pytest.raises(ValueError, match="r.npz: mu_s has 7 features, --features gives 2023"):
        adm._check_width(batch, network, "r.npz")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arr_0": None}, "arr_0, its pictures, is missing"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64 of .*; must be uint8"),
        ({"arr_0": np.zeros((0, 4, 4, 3), np.uint8)}, "arr_0 holds no picture"),
        ({"sigma_s": None}, "it has mu, but not sigma_s"),
        ({"sigma": np.eye(4)}, r"mu has shape \(5,\), sigma \(4, 4\)"),
        ({"mu_s": np.full(7, np.nan)}, "mu_s must hold finite floats"),
        ({"sigma": np.full((5, 5), 1e300)}, r"sigma must hold numbers of at most 1e\+09"),
        ({"sigma": np.eye(5, k=1)}, "sigma must be symmetric, with variances of at least 0"),
        ({"sigma_s": -np.eye(7)}, "sigma_s must be symmetric, with variances of at least 0"),
    ],
)
def test_what_is_no_batch_is_refused(changes, sentence, tmp_path):
    path = tmp_path / "reference.npz"
    kept = {key: array for key, array in (GOOD | changes).items() if array is not None}
    np.savez(path, **kept)
    with pytest.raises(ValueError, match=f"is no batch of ADM's evaluator: {sentence}"):
        read_batch(path)


# ---- the whole measurement, with pictures in the place of an export's


class Evaluation:
    """What plan_adm asks of an evaluation; pictures of a class have its grey, and noise."""

    stage = "base"

    def __init__(self, settings, classes):
        self.settings, self.output, self.watch = settings, epath.Path(settings.output), Watch()
        task = types.SimpleNamespace(class_names=classes)
        self.config = types.SimpleNamespace(runs={"base": types.SimpleNamespace(task=task)})
        self.classes = classes

    def data(self):
        return DataConfig(source="scenes", resolution=32, scenes=ScenesConfig())

    def protocol(self):
        return {"seed": 0}

    def draw(self, captions, folder):
        path = self.output / folder
        (path / "base").mkdir(parents=True, exist_ok=True)
        (path / "manifest.json").write_text(repr(captions))
        rng = np.random.default_rng(0)
        for place, name in enumerate(captions):
            grey = 100 * self.classes.index(name) + 20
            picture = rng.integers(grey, grey + 100, (32, 32, 3), np.uint8)
            Image.fromarray(picture).save(path / f"base/{place:06d}.png")
        requests = tuple({"label": name} for name in captions)
        return Pictures(path, requests, ("base",))


def asked(tmp_path, shared_data, **changes):
    (weights,) = shared_data("weights/inception_v3_2015").glob("*.safetensors")
    settings = Settings(
        output=str(tmp_path / "out"),
        count=6,
        batch_size=4,
        features=str(weights),
        reference=("limit=8",),
    )
    return dataclasses.replace(settings, **changes)


def stored(folder, layer):
    parts = [np.load(path)[layer] for path in sorted(folder.glob("*.npz"))]
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.slow
def test_a_source_and_a_batch_with_its_moments_give_the_same(tmp_path, shared_data, monkeypatch):
    settings = asked(tmp_path, shared_data, npz=str(tmp_path / "samples.npz"))
    # Compiled once, and for one device.
    make = functools.lru_cache(adm.inception_network)
    monkeypatch.setattr(adm, "inception_network", make)
    monkeypatch.setattr(extraction.jax, "local_devices", lambda: jax.devices()[:1])
    first = adm.plan_adm(Evaluation(settings, ("dark", "light")))()
    assert set(first.values) == {"FID-768", "sFID", "precision", "recall"}
    assert any("6 pictures, not 50,000" in warning for warning in first.warnings)
    assert any("FID-768" in warning for warning in first.warnings)
    assert first.protocol["pictures"] == "6 of 2 classes in turn"
    with np.load(tmp_path / "samples.npz") as batch:
        drawn, numbers = batch["arr_0"], batch["arr_1"]
    assert numbers.tolist() == [0, 1, 0, 1, 0, 1]
    for place, picture in enumerate(drawn):
        path = tmp_path / f"out/adm/base/{place:06d}.png"
        np.testing.assert_array_equal(picture, np.asarray(Image.open(path)))
    (folder,) = (tmp_path / "out").glob("reference_*")
    moments = {}
    for layer, keys in (("768", ("mu", "sigma")), ("spatial", ("mu_s", "sigma_s"))):
        real = stored(folder / "features", layer)
        moments |= dict(zip(keys, (real.mean(0), np.cov(real, rowvar=False)), strict=True))
    assert moments["mu_s"].shape == (2023,)
    np.savez(tmp_path / "batch.npz", arr_0=drawn, **moments)
    again = dataclasses.replace(settings, reference=(str(tmp_path / "batch.npz"),), npz="")
    second = adm.plan_adm(Evaluation(again, ("dark", "light")))()
    for name in ("FID-768", "sFID"):
        assert second.values[name] == pytest.approx(first.values[name], rel=1e-5)
    # The batch's pictures are the drawn ones themselves.
    assert second.values["precision"] == second.values["recall"] == 1.0
    narrow = GOOD | {"arr_0": drawn}
    np.savez(tmp_path / "narrow.npz", **narrow)
    other = dataclasses.replace(again, reference=(str(tmp_path / "narrow.npz"),))
    with pytest.raises(ValueError, match="mu has 5 features, --features gives 768"):
        adm.plan_adm(Evaluation(other, ("dark", "light")))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"features": "clip"}, "--features is missing: adm needs"),
        ({"resize": "clean-fid"}, "--resize=clean-fid: must be torch-fidelity for adm"),
        ({"count": 3}, "--count = 3: must be at least 4"),
        ({"reference": ("limit=3",)}, "pictures of --reference = 3: must be at least 4"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_drawn(
    changes, sentence, tmp_path, shared_data
):
    evaluation = Evaluation(asked(tmp_path, shared_data, **changes), ("dark", "light"))
    with pytest.raises(ValueError, match=sentence):
        adm.plan_adm(evaluation)
    assert not (tmp_path / "out").exists()

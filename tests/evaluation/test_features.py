"""Features in files: resumed, never twice, only of what they say."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation import features
from contextdiff_jax.system.interruption import Interrupted

COUNT = 2 * features.CHUNK + 10
RECORD = {"network": "mean"}


@dataclasses.dataclass
class Stop:
    triggered: bool = False


class Images:
    """Image i is filled with i; remembers which were read."""

    def __init__(self):
        self.seen = []

    def __call__(self, places):
        self.seen += places
        return np.stack([np.full((2, 2, 3), place % 256, np.uint8) for place in places])


def mean(pictures):
    return {"mean": pictures.astype(np.float32).mean((1, 2))}


def expected():
    return np.repeat(np.arange(COUNT)[:, None] % 256, 3, axis=1).astype(np.float32)


def test_every_image_once_in_order_and_nothing_again(tmp_path):
    images = Images()
    found = features.extract_features(tmp_path, RECORD, COUNT, images, mean, Stop())
    np.testing.assert_array_equal(found.all("mean"), expected())
    assert [len(part) for part in found.parts("mean")] == [features.CHUNK, features.CHUNK, 10]
    again = Images()
    found = features.extract_features(tmp_path, RECORD, COUNT, again, mean, Stop())
    np.testing.assert_array_equal(found.all("mean"), expected())
    assert images.seen == list(range(COUNT)) and again.seen == []


def test_stopped_and_killed_work_is_gone_on_with(tmp_path):
    images = Images()
    with pytest.raises(Interrupted, match=f"image {features.CHUNK}, saved; the same command"):
        features.extract_features(tmp_path, RECORD, COUNT, images, mean, Stop(True))
    (tmp_path / "000256.npz.x.tmp").write_bytes(b"half a file of a killed writer")
    found = features.extract_features(tmp_path, RECORD, COUNT, images, mean, Stop())
    np.testing.assert_array_equal(found.all("mean"), expected())
    assert images.seen == list(range(COUNT))
    assert not list(tmp_path.glob("*.tmp"))


def test_features_of_something_else_are_refused(tmp_path):
    features.extract_features(tmp_path, RECORD, 4, Images(), mean, Stop())
    with pytest.raises(ValueError, match="network: 'mean' there, 'median' here"):
        features.extract_features(tmp_path, {"network": "median"}, 4, Images(), mean, Stop())
    with pytest.raises(ValueError, match="images: 4 there, 5 here"):
        features.extract_features(tmp_path, RECORD, 5, Images(), mean, Stop())


def test_images_of_other_sizes_and_damaged_ones(tmp_path, picture_bytes):  # noqa: F811
    """All become squares of one side; those that cannot are left out and counted."""
    sizes = {"a.png": (30, 20), "b.png": (9, 64), "c.png": (16, 16)}
    rows = []
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(picture_bytes(100, size=size))
        rows.append(f'{{"file_name": "{name}", "text": "x"}}')
    (tmp_path / "d.png").write_bytes(b"no picture")
    rows.append('{"file_name": "d.png", "text": "x"}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    config = DataConfig(source="folder", path=str(tmp_path), resolution=16)
    source, report = open_source(config), SkipReport()
    read = features.source_reader(source, 16, 2, report)
    found = features.extract_features(tmp_path / "f", RECORD, 4, read, mean, Stop())
    assert found.all("mean").shape == (3, 3) and report.total == 1
    empty = read(range(3, 4))
    assert empty.shape == (0, 16, 16, 3)

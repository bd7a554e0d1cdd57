"""TFDS data sets: the adapter on plain dicts, and a real one prepared here as ArrayRecord."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from contextdiff_jax.data import decode
from contextdiff_jax.data.boxes import Box
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.data.tfds_source import TfdsSource, open_tfds

PREPARE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tfds.core.Path(sys.argv[1])

    def _info(self):
        captions = tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64})
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "captions": captions,
            "objects": {"title": tfds.features.Text()},
            "things": tfds.features.Sequence(
                {
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=["car", "dog"]),
                }
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            captions = [{"text": f"one {i}", "id": 1}, {"text": f"two {i}", "id": 2}]
            image = np.full((20, 30, 3), 40 * i, np.uint8)
            box = tfds.features.BBox(ymin=0.0, xmin=0.5, ymax=1.0, xmax=0.75)
            things = [{"bbox": box, "label": 1}] * (i % 3)
            row = {"image": image, "label": i % 2, "objects": {"title": f"title {i}"}}
            yield i, {**row, "captions": captions, "things": things}

Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ = """
import json, sys
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.sources import open_source

found = []
for i in range(6):
    source = open_source(DataConfig(source="tfds", path="tiny", tfds_dir=sys.argv[1], resolution=8))
    example = source[i]
    found.append((int(example.image[0, 0, 0]), example.captions, example.key))
print(json.dumps({"found": found, "tensorflow": "tensorflow" in sys.modules}))
"""


def run(code: str, *arguments) -> str:
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of the data set "tiny"; preparing (not reading) one needs TensorFlow."""
    for package in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: no TFDS data set can be prepared")
    folder = tmp_path_factory.mktemp("tfds")
    run(PREPARE, str(folder))
    return folder


def config_for(folder, **options) -> DataConfig:
    options = {"path": "tiny", "tfds_dir": str(folder), "resolution": 8} | options
    return DataConfig(source="tfds", **options)


def test_reads_prepared_data_without_tensorflow(prepared):
    result = json.loads(run(READ, str(prepared)).splitlines()[-1])
    assert result["tensorflow"] is False
    numbers = {grey // 40 for grey, _, _ in result["found"]}
    assert numbers == set(range(6))
    for place, (grey, captions, key) in enumerate(result["found"]):
        assert captions == [f"one {grey // 40}", f"two {grey // 40}"]
        assert key == f"tiny/train/{place}"


def test_caption_fields(prepared):
    labels = open_tfds(config_for(prepared, caption_fields=("label",)))
    titles = open_tfds(config_for(prepared, caption_fields=("objects/title",), path="tiny:1.0.0"))
    folder = str(prepared / "tiny" / "1.0.0")
    nested = open_tfds(config_for("", caption_fields=("captions/text", "label"), path=folder))
    for i in range(6):
        number = labels[i].image[0, 0, 0] // 40
        assert labels.captions(i) == (("cat", "dog")[number % 2],)
        assert titles.captions(i) == (f"title {number}",)
        assert nested.captions(i) == (f"one {number}", f"two {number}", ("cat", "dog")[number % 2])


def test_objects_become_boxes_with_names(prepared):
    """The picture is 30 x 20, so that the crop takes a sixth from each side."""
    source = open_tfds(config_for(prepared, boxes_field="things"))
    for i in range(6):
        example = source[i]
        number = example.image[0, 0, 0] // 40
        assert len(example.boxes) == number % 3
        for box in example.boxes:
            assert box.name == "dog"
            np.testing.assert_allclose(box.corners, (0.5, 0, 0.875, 1), atol=1e-6)
    with pytest.raises(DataError, match="boxes_field = 'label': must be a sequence of objects"):
        open_tfds(config_for(prepared, boxes_field="label"))


def test_an_object_without_a_label_is_of_no_class():
    """As an index, TFDS's -1 would be the last class."""
    row = {"objects": {"bbox": [[0.0, 0.0, 1.0, 1.0]], "label": [-1]}}
    config = DataConfig(source="tfds", path="x", boxes_field="objects")
    source = TfdsSource([row], config, {}, ("cat", "dog").__getitem__)
    with pytest.raises(DamagedSample, match="no usable boxes: not a list of objects with a name"):
        source.captions(0)


def test_class_names_in_a_template(prepared):
    options = {"caption_fields": ("label",), "caption_template": "a photo of a {}"}
    source = open_source(config_for(prepared, **options))
    for i in range(6):
        example = source[i]
        name = ("cat", "dog")[example.image[0, 0, 0] // 40 % 2]
        assert example.captions == source.captions(i) == (f"a photo of a {name}",)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "no_such_set"}, "'no_such_set' cannot be opened: .*not found"),
        ({"split": "val"}, "'tiny' cannot be read: .*val.*train"),
        ({"image_field": "label"}, "image_field = 'label': not an image of .* captions, image, la"),
        ({"caption_fields": ("title",)}, r"caption_fields = \('title',\): not all in"),
    ],
)
def test_sentences(prepared, options, sentence):
    with pytest.raises(DataError, match=sentence):
        open_tfds(config_for(prepared, **options))


def test_an_unprepared_set_says_how_to_prepare_it(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="cifar10.* is not prepared .*tfds build cifar10"):
        open_tfds(config_for(tmp_path, path="cifar10"))


def test_adapter_on_plain_records(picture_bytes):
    records = [
        {"image": picture_bytes(10), "caption": b"  a cat ", "label": np.int64(1)},
        {"image": b"<html>", "caption": b"caf\xe9"},
        {"image": picture_bytes(30), "caption": b""},
    ]
    source = TfdsSource(records, config_for(""), {})
    assert len(source) == 3
    assert source[0].captions == ("a cat",) and (source[0].image == 10).all()
    assert source.captions(1) == ("caf\u00e9",)
    for index, reason in ((1, decode.IMAGE_HTML), (2, decode.CAPTION_BLANK)):
        with pytest.raises(DamagedSample) as caught:
            source[index]
        assert (caught.value.key, caught.value.reason) == (f"tiny/train/{index}", reason)
    with pytest.raises(DataError, match="no sample in tfds tiny"):
        TfdsSource([], config_for(""), {})


def test_names_of_boxes_stand_for_captions(picture_bytes):
    objects = {"bbox": np.array([[0, 0, 0.5, 1], [0, 0, 1, 1]]), "label": np.array([1, 0])}
    bad = {"bbox": np.array([[0, 0, 0.5, 1.5]]), "label": np.array([1])}
    records = [{"image": picture_bytes(10), "things": each} for each in (objects, bad)]
    names = ("car", "dog").__getitem__
    source = TfdsSource(records, config_for("", boxes_field="things"), {}, names)
    assert source.captions(0) == source[0].captions == ("dog, car",)
    assert source[0].boxes[0] == Box("dog", (0, 0, 1, 0.5))
    with pytest.raises(DamagedSample, match="a corner outside the picture"):
        source[1]


def test_a_sample_without_a_label_has_no_caption(picture_bytes):
    """TFDS marks it by -1, which as an index is the last class."""
    records = [{"image": picture_bytes(10), "label": np.int64(label)} for label in (1, -1, 7)]
    names = {"label": ["cat", "dog"].__getitem__}
    source = TfdsSource(records, config_for("", caption_fields=("label",)), names)
    assert source.captions(0) == source[0].captions == ("dog",)
    for index, reason in ((1, decode.CAPTION_MISSING), (2, "cannot be decoded (IndexError)")):
        for read in (source.__getitem__, source.captions):
            with pytest.raises(DamagedSample) as caught:
                read(index)
            assert caught.value.reason == reason


def test_a_record_without_its_features_is_a_damaged_sample():
    source = TfdsSource([{"caption": b"c"}], config_for(""), {})
    with pytest.raises(DamagedSample, match=r"tiny/train/0: cannot be decoded \(KeyError\)"):
        source[0]

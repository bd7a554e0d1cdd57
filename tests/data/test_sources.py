"""Opening by name, the first samples only, and captions for a tokenizer."""

import subprocess
import sys

import pytest

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.data.sources import open_source, sample_captions


def test_each_source_opens(tiny_shards, tmp_path, picture_bytes):
    assert open_source(DataConfig()).name == "scenes train"
    config = DataConfig(source="shards", path=str(tiny_shards), cache_dir=str(tmp_path))
    assert len(open_source(config)) == 9
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"text": "b"}')
    report = SkipReport()
    assert len(open_source(DataConfig(source="folder", path=str(tmp_path)), report)) == 1
    assert report.total == 1
    with pytest.raises(ValueError, match="data.resolution = 1"):
        open_source(DataConfig(resolution=1))


def test_limit(tiny_shards, tmp_path):
    config = DataConfig(source="shards", path=str(tiny_shards), cache_dir=str(tmp_path), limit=3)
    source = open_source(config)
    assert len(source) == 3 and source.name.endswith("first 3")
    assert source.captions(2) == source[2].captions == ("sample 2",)
    for read in (source.__getitem__, source.captions):
        with pytest.raises(IndexError):
            read(3)
    assert len(open_source(DataConfig(limit=5))) == 5


def test_caption_template(tmp_path, picture_bytes):
    (tmp_path / "0.png").write_bytes(picture_bytes(10))
    row = '{"file_name": "0.png", "label": ["cat", "{}"], "text": "unread"}'
    (tmp_path / "metadata.jsonl").write_text(row)
    config = DataConfig(
        source="folder",
        path=str(tmp_path),
        caption_fields=("label",),
        caption_template="a photo of a {}, small",
        limit=1,
    )
    source = open_source(config)
    assert source[0].captions == ("a photo of a cat, small", "a photo of a {}, small")
    assert source.captions(0) == source[0].captions and len(source) == 1
    assert (source[0].image == 10).all()


def test_sample_captions(list_source):
    source = list_source(10, captions=2)
    captions = sample_captions(source, 100, seed=0)
    assert sorted(captions) == sorted(f"{i}.{j}" for i in range(10) for j in range(2))
    few = sample_captions(source, 3, seed=1)
    assert len(set(few)) == 6 and few == sample_captions(source, 3, seed=1)
    assert few != sample_captions(source, 3, seed=2)
    assert len(set(sample_captions(open_source(DataConfig()), 50, seed=0))) > 30


def test_sample_captions_leaves_out_damaged_ones(shared_data, tmp_path):
    folder = shared_data("damaged_shards")
    config = DataConfig(source="shards", path=str(folder), cache_dir=str(tmp_path))
    captions = sample_captions(open_source(config), 1000, seed=0)
    assert all(caption.strip() for caption in captions)
    assert len(captions) == 36  # 37 in the index, one of them blank


def test_unknown_tfds_name_is_one_sentence():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(
        DataError, match="TFDS data set 'no_such_set' cannot be opened: .*not found"
    ):
        open_source(DataConfig(source="tfds", path="no_such_set"))


def test_reading_imports_neither_tensorflow_nor_torch():
    code = (
        "import sys; from contextdiff_jax.data import pipeline, shards, folder, tfds_source;"
        "from contextdiff_jax.data import sources;"
        "from contextdiff_jax.data.config import DataConfig;"
        "c = DataConfig(resolution=16); b = pipeline.make_batches("
        "sources.open_source(c), c, 2, seed=0); next(b);"
        "bad = {'tensorflow', 'torch', 'tensorflow_datasets'} & set(sys.modules);"
        "assert not bad, bad"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr

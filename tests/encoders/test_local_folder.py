"""Encoders in a bucket: written there, read from there, copied anew when they changed."""

import numpy as np
import pytest
from etils import epath

from contextdiff_jax.encoders.frozen import folder_tokenizer
from contextdiff_jax.encoders.inception_weights import load_inception
from contextdiff_jax.encoders.local_folder import local_folder
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.encoders.weights import load_clip, load_clip_text, load_t5


def test_a_tokenizer_in_a_bucket(bucket, tmp_path):
    captions = ["a red cat on a mat", "a blue dog on a mat"]
    folder = epath.Path(bucket) / "encoder" / "tokenizer"
    there = train_tokenizer(captions, 300, 12, folder)
    here = train_tokenizer(captions, 300, 12, tmp_path / "tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for read in (there, folder_tokenizer(folder.parent)):
        np.testing.assert_array_equal(read(captions)[0], here(captions)[0])


def test_a_copy_is_made_once_and_again_after_a_change(bucket):
    folder = epath.Path(bucket) / "weights"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a.txt").write_text("one")
    first = local_folder(folder)
    assert (first / "inner/a.txt").read_text() == "one" and local_folder(folder) == first
    (folder / "inner" / "a.txt").write_text("three")
    assert (local_folder(folder) / "inner/a.txt").read_text() == "three"


def test_a_folder_that_is_not_in_the_bucket(bucket):
    for load in (local_folder, load_clip, load_clip_text, load_t5, folder_tokenizer):
        with pytest.raises(FileNotFoundError, match="'s3://bucket/none' does not exist"):
            load(f"{bucket}/none")
    with pytest.raises(FileNotFoundError, match="'s3://bucket' does not exist"):
        load_inception(f"{bucket}/inception.safetensors")

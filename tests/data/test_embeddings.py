"""Stored text tokens: what is written is read back, and nothing else is taken for it."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.embedding_shards import Metadata, StoredEncoder
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.data.example import DataError, SkipReport
from contextdiff_jax.data.pipeline import make_batches
from tests.conftest import ROOT

ENCODERS = {"text": StoredEncoder("sha256:a/b", 6, 4), "clip": StoredEncoder("sha256:c/d", 3, 2)}


def tokens_of(caption):
    """Different lengths and values for captions "INDEX.NUMBER"; thirds are not bfloat16 values."""
    index, number = map(int, caption.split("."))
    return {
        name: np.full((1 + (index + number) % e.max_length, e.width), index + number / 3)
        for name, e in ENCODERS.items()
    }


@pytest.fixture
def write(tmp_path):
    """Returns write(source, **metadata) -> the folder of its embeddings in shards of 4."""

    def make(source, **changes):
        fields = {"dtype": "float32", "compute_dtype": "float32", "finished": True} | changes
        known = {"source": source.name, "samples": len(source), "shard_size": 4}
        metadata = Metadata(**known, encoders=ENCODERS, **fields)
        dtype = shards.DTYPES[metadata.dtype]
        for shard in range(metadata.shards):
            records = []
            for index in metadata.samples_of(shard):
                captions = () if index in source.damaged else source.captions(index)
                rows = [{n: t.astype(dtype) for n, t in tokens_of(c).items()} for c in captions]
                records.append(shards.pack(zip(captions, rows, strict=True)))
            records.append(shards.pack_report(SkipReport(), {"text": 0}))
            shards.write_records(epath.Path(tmp_path) / metadata.shard_name(shard), records)
        metadata.write(epath.Path(tmp_path))
        return epath.Path(tmp_path)

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_caption_comes_back_at_its_true_length(write, list_source, dtype):
    embeddings = Embeddings(write(list_source(11, captions=2), dtype=dtype))
    for index in range(11):
        for caption in list_source(11, captions=2).captions(index):
            found = embeddings.read(index, caption)
            for name, expected in tokens_of(caption).items():
                assert found[name].dtype == shards.DTYPES[dtype]
                np.testing.assert_array_equal(found[name], expected.astype(shards.DTYPES[dtype]))


def test_a_record_holds_no_padding():
    long, short = (np.zeros((n, 4096), shards.DTYPES["bfloat16"]) for n in (100, 10))
    size = len(shards.pack([("a", {"text": long}), ("b", {"text": short})]))
    assert 110 * 4096 * 2 <= size < 110 * 4096 * 2 + 64


def test_batches_hold_the_drawn_captions_tokens_padded(write, list_source):
    source = list_source(11, damaged={4: "a"}, captions=3)
    batches = make_batches(
        source,
        DataConfig(resolution=8, threads=3),
        8,
        seed=0,
        embeddings=Embeddings(write(source)),
        with_text=True,
    )
    batch = [next(batches) for _ in range(4)][-1]
    batches.close()
    assert len({c.split(".")[1] for c in batch["captions"]}) == 3
    assert batch["present"].all() and batch["text_tokens"].shape == (8, 6, 4)
    for row, caption in enumerate(batch["captions"]):
        for name, expected in tokens_of(caption).items():
            length = len(expected)
            tokens, mask = batch[f"{name}_tokens"][row], batch[f"{name}_mask"][row]
            np.testing.assert_array_equal(mask, np.arange(len(mask)) < length)
            np.testing.assert_array_equal(tokens[:length], expected.astype(np.float32))
            assert not tokens[length:].any()


def test_only_the_encoders_asked_for_are_read(write, list_source):
    embeddings = Embeddings(write(list_source(3)), ["text"])
    assert sorted(embeddings.collate([embeddings.read(0, "0.0")])) == [
        "present",
        "text_mask",
        "text_tokens",
    ]


def test_another_caption_or_a_damaged_sample_is_refused(write, list_source):
    embeddings = Embeddings(write(list_source(11, damaged={4: "a"}, captions=2)))
    with pytest.raises(DataError, match=r"sample 5 has the caption '6\.0'.* hold 2 others: .*list"):
        embeddings.read(5, "6.0")
    with pytest.raises(DataError, match=r"sample 4 has the caption '4\.0'.* it was damaged"):
        embeddings.read(4, "4.0")


def test_another_data_set_is_refused_before_the_run(write, list_source):
    embeddings = Embeddings(write(list_source(11)))
    embeddings.check_source(list_source(11))
    with pytest.raises(DataError, match=r"are of 11 samples \(list\), the run reads 12 \(list\)"):
        embeddings.check_source(list_source(12))
    with pytest.raises(DataError, match=r"has the caption '0\.1'"):
        embeddings.check_source(list_source(11, captions=2))


def test_folders_that_cannot_be_used_say_why(write, list_source, tmp_path):
    with pytest.raises(DataError, match=r"no embeddings in .*metadata\.json is missing"):
        Embeddings(tmp_path)
    folder = write(list_source(11), finished=False)
    with pytest.raises(DataError, match="are not finished: give the same"):
        Embeddings(folder)
    metadata = dataclasses.replace(shards.read_metadata(folder), finished=True)
    metadata.write(folder)
    last = folder / metadata.shard_name(2)
    last.write_bytes(last.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"00002-of-00003\.array_record is missing or not a whole"):
        Embeddings(folder).read(9, "9.0")
    (folder / shards.METADATA).write_text('{"format": 1}')
    with pytest.raises(DataError, match="no description of embeddings"):
        Embeddings(folder)


def test_a_prompt_that_is_not_there_is_named(write, list_source):
    folder = write(list_source(3))
    prompts = ["1.2", "2.2"]
    record = shards.pack(
        [(p, {n: t.astype("f4") for n, t in tokens_of(p).items()}) for p in prompts]
    )
    shards.write_records(folder / shards.PROMPTS, [record])
    arrays = Embeddings(folder).prompts(["2.2", "1.2", "2.2"])
    assert arrays["text_tokens"].shape == (3, 6, 4) and arrays["present"].all()
    np.testing.assert_allclose(arrays["text_tokens"][:, 0, 0], [2 + 2 / 3, 1 + 2 / 3, 2 + 2 / 3])
    with pytest.raises(DataError, match=r"preview prompt '3\.0' is not among .* it adds prompts"):
        Embeddings(folder).prompts(["1.2", "3.0"])


def test_a_full_disk_leaves_no_half_file(tmp_path):
    code = (
        "import os, resource, signal, sys\n"
        "from etils import epath\n"
        "from contextdiff_jax.data.embedding_shards import WriteError, write_records\n"
        f"signal.signal({int(signal.SIGXFSZ)}, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    write_records(epath.Path(sys.argv[1]) / 'a', [os.urandom(50_000)] * 20)\n"
        "except WriteError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert "could not be written" in done.stdout and "File too large" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (b"\xc1", "is damaged at record 0"),
        (b"\x93\x01\x02\x03", "is damaged at record 0"),
        (shards.pack_entries({shards.caption_digest("0.0"): {"clip": b"12345678"}}), "text tokens"),
        (
            shards.pack_entries({shards.caption_digest("0.0"): {"text": b"123", "clip": b""}}),
            "text tokens",
        ),
        (
            shards.pack_entries({shards.caption_digest("0.0"): {"text": bytes(112), "clip": b""}}),
            "holds 7 text tokens of one text: must be at most 6",
        ),
    ],
)
def test_a_damaged_record_is_one_sentence(write, list_source, record, sentence):
    folder = write(list_source(4))
    path = folder / "00000-of-00001.array_record"
    shards.write_records(path, [record, *[shards.pack([])] * 3])
    with pytest.raises(DataError, match=sentence) as caught:
        Embeddings(folder).read(0, "0.0")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 1e999), ("shard_size", 0), ("dtype", "x"), ("encoders", {"text": {"width": 1}})],
)
def test_metadata_that_cannot_be_right(write, list_source, key, value):
    folder = write(list_source(4))
    path = folder / shards.METADATA
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError, match="metadata.json is no description of embeddings"):
        Embeddings(folder)
    for text in ("[" * 100_000, "[]", "\x00"):
        path.write_text(text)
        with pytest.raises(DataError, match="metadata.json is no description of embeddings"):
            Embeddings(folder)

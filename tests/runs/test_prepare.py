"""Encoding a data set once: against torch, through kills, and by Beam."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from contextdiff_jax.config import with_task
from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.embeddings import Embeddings
from contextdiff_jax.encoders.frozen import load_text_encoder
from contextdiff_jax.runs.prepare import Worker, prepare
from contextdiff_jax.training.checkpoints import CheckpointError
from tests.runs.conftest import DAMAGED, SAMPLES, captions


def files(job):
    """The bytes of every file a job wrote, by name."""
    return {path.name: path.read_bytes() for path in epath.Path(job.output).iterdir()}


@pytest.fixture
def prepared(make_job):
    job = make_job(dtype="float32")
    prepare(job)
    return job


def test_stored_tokens_are_torch_s_of_each_caption_alone(prepared, t5_folder):
    import torch

    folder, model = t5_folder
    tokenizer = load_text_encoder("t5", folder, max_length=40).tokenizer
    embeddings = Embeddings(prepared.output)
    for index in set(range(SAMPLES)) - {DAMAGED}:
        for caption in captions(index):
            ids, mask = tokenizer([caption])
            ids = torch.tensor(ids[:, : mask.sum()]).long()
            with torch.no_grad():
                expected = model(ids).last_hidden_state[0].numpy()
            found = embeddings.read(index, caption)["text"]
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-4)


def test_clip_tokens_are_stored_beside_at_their_own_length(prepared, clip_folder):
    encoder = load_text_encoder("clip", clip_folder)
    embeddings = Embeddings(prepared.output)
    for index in (0, SAMPLES - 1):
        for caption in captions(index):
            ids, mask = encoder.tokenizer([caption])
            expected, _ = encoder.encode(encoder.params, ids, mask)
            found = embeddings.read(index, caption)["clip"]
            np.testing.assert_allclose(found, expected[0, : mask.sum()], atol=1e-5)
    assert len(embeddings.read(10, captions(10)[0])["clip"]) == 12


def test_damaged_samples_and_cut_captions_are_counted(prepared):
    embeddings = Embeddings(prepared.output)
    reader = shards.open_records(embeddings.folder / embeddings.metadata.shard_name(1))
    assert reader.num_records() == 4 + 1
    assert shards.unpack(shards.read_record(reader, epath.Path("x"), DAMAGED - 4)) == {}
    report = json.loads((embeddings.folder / shards.REPORT).read_text())
    assert report["total_skipped"] == 1
    assert report["skipped"] == {
        "no usable caption: blank": {"count": 1, "names": [f"00000/{DAMAGED:05d}"]}
    }
    used = [c for i in range(SAMPLES) if i != DAMAGED for c in captions(i)]
    for name, encoder in Worker(prepared)._encoders.items():
        tokenizer = encoder.encoder.tokenizer
        assert report["cut_captions"][name] == sum(bool(tokenizer.cut_words(c)) for c in used) > 0


def test_preview_prompts_are_stored_and_added_to(prepared, make_job):
    arrays = Embeddings(prepared.output).prompts(["", "a red circle"])
    assert arrays["present"].tolist() == [False, True]
    before = files(prepared)
    config = prepared.config
    base = config.runs["base"]
    preview = dataclasses.replace(base.task.preview, prompts=("a blue square",))
    runs = {"base": with_task(base, preview=preview)}
    prepare(dataclasses.replace(prepared, config=dataclasses.replace(config, runs=runs)))
    again = Embeddings(prepared.output).prompts(["a blue square", "a red circle"])
    np.testing.assert_array_equal(again["text_tokens"][1], arrays["text_tokens"][1])
    after = files(prepared)
    assert {name for name in before if before[name] != after[name]} == {shards.PROMPTS}


def test_resumes_after_a_kill_inside_a_shard(prepared, make_job, monkeypatch):
    job = make_job("killed", dtype="float32")
    encode = Worker._encode

    def dies(worker, texts):
        if any("number 9" in text for text in texts):
            raise KeyboardInterrupt
        return encode(worker, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_encode", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(job)
    assert sorted(files(job)) == [
        "00000-of-00003.array_record",
        "00001-of-00003.array_record",
        "metadata.json",
    ]
    remains = epath.Path(job.output) / "00002-of-00003.array_record.0a.tmp"
    remains.write_bytes(b"half")  # what kill -9 leaves
    with pytest.raises(ValueError, match="are not finished"):
        Embeddings(job.output)
    written = []
    write = Worker.write_shard
    monkeypatch.setattr(
        Worker, "write_shard", lambda w, n, advance: (written.append(n), write(w, n, advance))
    )
    prepare(job)
    assert written == [2]
    assert files(job) == files(prepared)


def test_a_folder_of_something_else_is_refused(prepared, make_job):
    for fields, sentence in (
        ({"dtype": "bfloat16"}, r"embeddings\.dtype: 'float32' there, 'bfloat16' here"),
        ({"dtype": "float32", "shard_size": 5}, r"embeddings\.shard_size: 4 there, 5 here"),
        ({"dtype": "float32", "use_adapter": False}, r"embeddings\.encoders\.clip"),
    ):
        with pytest.raises(ValueError, match=sentence):
            prepare(make_job(**fields))
    shard = epath.Path(prepared.output) / "00001-of-00003.array_record"
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"1 shards are missing .* 00001-of-00003"):
        prepare(prepared, encode=lambda *_: None)


def test_endless_scenes_are_refused(make_job):
    job = make_job()
    config = job.config
    data = dataclasses.replace(config.runs["base"].data, source="scenes", path="")
    runs = {"base": dataclasses.replace(config.runs["base"], data=data)}
    job = dataclasses.replace(job, config=dataclasses.replace(config, runs=runs))
    with pytest.raises(ValueError, match="config.runs.base.data.limit = 0: must be a number"):
        Worker(job)


def test_beam_writes_the_same_bytes(prepared, make_job):
    pytest.importorskip("apache_beam", reason="requirements-beam.txt is not installed")
    from contextdiff_jax.runs.prepare_beam import encode_with_beam

    def encode(job, worker, missing):
        encode_with_beam(job, type(worker), missing, "DirectRunner", [])

    job = make_job("by_beam", dtype="float32")
    prepare(job, encode)
    assert files(job) == files(prepared)

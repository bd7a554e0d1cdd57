"""Tiny encoders and a tar shard with several captions per sample, one sample damaged."""

import dataclasses
import json

import jax
import pytest

from contextdiff_jax.config import EncoderRef, with_task
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.encoders.tokenizers import train_tokenizer
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.runs import train
from contextdiff_jax.runs.prepare import Job
from contextdiff_jax.tasks.diffusion_config import PreviewConfig
from tests.fixtures.tiny_tasks import CAPTIONS, WIDTH

SAMPLES, DAMAGED = 11, 4


@pytest.fixture(scope="module")
def one_device():
    """Eight virtual ones would take eight times as long to compile for."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        for module in (train, stable_diffusion):
            patch.setattr(module, "make_mesh", lambda config: make_mesh(config, devices))
        patch.setattr(
            "contextdiff_jax.generation.cascade._sampling_mesh",
            lambda config: make_mesh(config.mesh, devices),
        )
        yield


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory):
    """A random T5 encoder of transformers, as wide as the tests' networks expect, and its model."""
    torch = pytest.importorskip("torch", reason="the oracle is transformers' torch model")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer(CAPTIONS, 300, 40, folder / "tokenizer")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=tokenizer.vocab_size,
        d_model=WIDTH,
        d_ff=24,
        num_heads=2,
        d_kv=8,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config).eval()
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory, picture_bytes, write_tar):  # noqa: F811
    """One tar; sample i has the captions of `captions(i)`, sample 4 a blank one."""
    folder = tmp_path_factory.mktemp("shards")
    members = []
    for i in range(SAMPLES):
        row = {"captions": [" "] if i == DAMAGED else captions(i)}
        members += [
            (f"{i:05d}.png", picture_bytes(20 * i)),
            (f"{i:05d}.json", json.dumps(row).encode()),
        ]
    write_tar(folder / "00000.tar", members)
    return folder


def captions(index):
    """Captions of 4 to some 60 tokens: the encoders cut at 40 and 12."""
    return [CAPTIONS[index % 4] + " x" * (5 * index), f"number {index}"]


@pytest.fixture
def make_job(make_config, t5_folder, shard_folder, tmp_path):  # noqa: F811
    """Returns make(output, use_adapter, **fields of Job) -> a job with T5 and CLIP."""

    def make(output="embeddings", use_adapter=True, **fields):
        config = make_config(use_adapter)
        data = DataConfig(
            source="shards",
            path=str(shard_folder),
            resolution=16,
            caption_fields=("captions",),
            threads=2,
            cache_dir=str(tmp_path / "index"),
        )
        preview = PreviewConfig(every=1, prompts=("a red circle", ""), num_steps=2)
        run = with_task(dataclasses.replace(config.runs["base"], data=data), preview=preview)
        text = EncoderRef(kind="t5", path=str(t5_folder[0]), max_length=40)
        config = dataclasses.replace(
            config,
            runs={"base": run},
            pipeline=("base",),
            encoders=dataclasses.replace(config.encoders, text=text),
        )
        fields = {"batch_size": 2, "shard_size": 4} | fields
        return Job(config, "base", "", str(tmp_path / output), **fields)

    return make

"""Training on stored tokens is training with the encoders in the loop, or is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.runs import build
from contextdiff_jax.runs.embeddings import open_embeddings
from contextdiff_jax.runs.prepare import prepare
from contextdiff_jax.runs.resumption import check_same_run

LOCATE = build.locate_in("unused")


def build_loaded(config, embeddings=None):
    """The task of the base, its encoders loaded or their tokens stored."""
    return build.build_task(config, "base", build.LoadedEncoders(config, LOCATE, embeddings))


def with_embeddings(job):
    """The job's config and its run, reading what the job wrote."""
    run = job.config.runs["base"]
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, embeddings=job.output))
    return dataclasses.replace(job.config, runs={"base": run}), run


def first_batch(source, run, **arrays):
    batches = make_batches(source, run.data, 6, seed=0, **arrays)
    batch = next(batches)
    batches.close()
    return {name: value for name, value in batch.items() if name != "index"}


def test_the_loss_is_that_of_encoding_in_the_loop(make_job):
    key, losses, tokens = jax.random.key(3), {}, {}
    for dtype in ("float32", "bfloat16"):
        job = make_job(dtype, dtype=dtype)
        prepare(job)
        config, run = with_embeddings(job)
        source = open_source(run.data)
        embeddings = open_embeddings(config, run, source, LOCATE)
        task = build_loaded(config, embeddings)
        params = random_parameters(task)
        batch = first_batch(source, run, embeddings=embeddings)
        loss = jax.jit(lambda params, batch, task=task: task.loss(params, task.frozen, batch, key))
        losses[dtype] = loss(params, batch)[0]
        tokens[dtype] = np.asarray(batch["text_tokens"], np.float32)
    others = loss(params, batch | {"text_tokens": batch["text_tokens"][::-1]})[0]

    encoding = build_loaded(config)
    ids = first_batch(source, run, tokenize=encoding.collate)
    np.testing.assert_array_equal(batch["image"], ids["image"])
    expected = jax.jit(lambda p, b: encoding.loss(p, encoding.frozen, b, key))(params, ids)[0]
    np.testing.assert_allclose(losses["float32"], expected, rtol=1e-5)
    assert abs(losses["bfloat16"] - expected) < 0.1 * abs(others - expected)
    # The rounding is there, whether or not it survives in a float32 loss.
    assert 0 < np.abs(tokens["bfloat16"] - tokens["float32"]).max() < 0.02

    assert encoding.identities() == task.identities()
    assert set(task.frozen) == {task.image_encoder.identity}
    assert len(encoding.frozen) == 3


def random_parameters(task):
    """Parameters of no particular kind, none of them zero; initialising would compile."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)


def test_the_condition_is_the_same_for_previews(make_job):
    job = make_job(dtype="float32")
    prepare(job)
    config, run = with_embeddings(job)
    source = open_source(run.data)
    embeddings = open_embeddings(config, run, source, LOCATE)
    conditions = []
    for stored in (None, embeddings):
        task = build_loaded(config, stored)
        task = build.with_preview(task, run, source, 0, stored)
        conditions.append(task._given({}, task.frozen, task.preview_batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *conditions)
    metadata = build.checkpoint_metadata(config, "base", task, source, embeddings) | {"step": 4}
    assert metadata["data"] == {"samples": len(source), "embeddings": "float32"}
    moved = build.checkpoint_metadata(job.config, "base", task, source, embeddings)
    check_same_run(metadata, moved, "base")
    encoded = build.checkpoint_metadata(job.config, "base", task, source)
    with pytest.raises(ValueError, match=r"data\.embeddings: 'float32' there, None here"):
        check_same_run(metadata, encoded, "base")


def test_embeddings_of_something_else_are_refused(make_job, t5_folder, clip_folder):
    job = make_job(use_adapter=False)
    prepare(job)
    config, run = with_embeddings(job)
    source = open_source(run.data)

    def refused(sentence, config=config, source=source, **text):
        encoders = dataclasses.replace(
            config.encoders, text=dataclasses.replace(config.encoders.text, **text)
        )
        with pytest.raises(ValueError, match=sentence):
            open_embeddings(dataclasses.replace(config, encoders=encoders), run, source, LOCATE)

    identity = build.load_text_encoders(config, LOCATE)["text"].identity
    refused(
        rf"were made by the text encoder {identity}, config\.encoders\.text\.path = .* is sha256",
        path=str(clip_folder),
        max_length=None,
    )
    refused(r"cut at 40 text tokens, config\.encoders\.text has 30", max_length=30)
    refused("tokens of text, the run reads clip too", dataclasses.replace(config, use_adapter=True))
    fewer = open_source(dataclasses.replace(run.data, limit=5))
    refused(r"of 11 samples \(shards .*\), the run reads 5 \(shards .*, first 5\)", source=fewer)
    assert open_embeddings(config, run, source, lambda ref: t5_folder[0] / "gone") is not None

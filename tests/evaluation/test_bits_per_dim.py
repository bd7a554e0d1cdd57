"""Bits per dimension of a folder of images: each once, whatever the batches, devices and stops."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from contextdiff_jax.conditions.condition import Condition, Given
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.evaluation.bits_per_dim import LikelihoodSettings, _measure_of, bits_per_dim
from contextdiff_jax.evaluation.bound_rows import read_rows
from contextdiff_jax.evaluation.bound_terms import bound_terms
from contextdiff_jax.evaluation.ode_likelihood import dequantized
from contextdiff_jax.evaluation.ode_measure import OdeRows
from contextdiff_jax.generation.cascade import Stage
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.system.interruption import Interrupted, Watch
from contextdiff_jax.tasks.flow import Flow
from contextdiff_jax.tasks.flow_config import FlowConfig, MeanFlowConfig

COUNT, DAMAGED = 11, 4


class Clock(Watch):
    """A watch that is triggered when it was looked at `after` times."""

    def __init__(self, after=10_000):
        self.left = after

    @property
    def triggered(self):
        self.left -= 1
        return self.left < 0


class Scaled:
    """Stands in for either network: a multiple of the image that depends on the caption."""

    dtype, config = jnp.float32, "scaled"

    def apply(self, params, x, t, *inputs, text=None, **kwargs):
        text = inputs[1] if text is None else text
        return params["params"]["scale"] * x * (1 + 0.1 * text[:, :1, :1, None])


class CaptionLength(Condition):
    """A caption of which the networks see the length alone."""

    name = "text"

    def collate(self, values, warn=False):
        lengths = np.array([[[len(caption)]] for caption in values], np.float32)
        return {"length": lengths, "present": np.ones(len(values), bool)}

    def encode(self, params, frozen, batch):
        mask = jnp.ones(batch["length"].shape[:2], bool)
        return Given(batch["present"], batch["length"], mask, batch["length"], mask)

    def identities(self):
        return {"text": "length"}


class NoEncoder:
    """Stands in for the image encoder."""

    identity = "none"

    def tokens(self, params, images):
        return None


@pytest.fixture
def make_stage(make_task):
    """Returns make(devices) -> a stage of stand-ins over so many devices."""

    def make(devices=1, scale=0.4):
        task = dataclasses.replace(
            make_task(num_steps=6, prediction="x0"),
            denoiser=Scaled(),
            adapter=Scaled(),
            conditions=(CaptionLength(),),
            image_encoder=NoEncoder(),
        )
        params = {"denoiser": {"scale": scale}, "adapter": {"scale": 0.2}}
        params = jax.tree.map(jnp.float32, params)
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        return Stage("base", task, params, {"none": None}, task.sampler, mesh)

    return make


@pytest.fixture(scope="module")
def data(tmp_path_factory, picture_bytes):
    """Held-out images in a folder, one of them no image at all."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(COUNT):
        picture = b"<html>" if i == DAMAGED else picture_bytes(20 * i, size=(16, 16))
        (folder / f"{i}.png").write_bytes(picture)
        rows.append({"file_name": f"{i}.png", "text": ["x" * i + "x", "unread"]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataConfig(source="folder", path=str(folder), resolution=16, threads=2)


class GaussianVelocity:
    """Stands in for a flow's network: E[u | x_t] of N(length / 10, 0.6^2) by the caption's."""

    dtype, config = jnp.float32, "gaussian"

    def apply(self, params, x, t, *, text, **kwargs):
        time, mean = t[:, None, None, None] / 1000, text[:, :1, :1, None] / 10
        share = (x - (1 - time) * mean) / ((1 - time) ** 2 * 0.6**2 + time**2)
        return time * share - mean - (1 - time) * 0.6**2 * share


@pytest.fixture
def flow_stage(make_task):
    """A stage of kind flow with the exact velocity of a Gaussian."""
    task = dataclasses.replace(
        make_task(num_steps=1000, prediction="v"),
        schedule=LinearPath(1000),
        denoiser=GaussianVelocity(),
        adapter=None,
        image_encoder=None,
        conditions=(CaptionLength(),),
        flow=Flow(FlowConfig()),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    return Stage("base", task, {"denoiser": {}}, {}, task.sampler, mesh)


def evaluate(stage, data, folder, watch=None, **settings):
    return bits_per_dim(stage, data, folder, LikelihoodSettings(**settings), watch or Clock())


def test_each_image_once_with_its_own_caption_and_noise(make_stage, data, tmp_path):
    stage = make_stage()
    result = evaluate(stage, data, tmp_path, batch_size=4, seed=5)
    rows = read_rows(tmp_path)
    sound = [i for i in range(COUNT) if i != DAMAGED]
    assert rows.index.tolist() == sound and result.values["images"] == 10
    x0 = np.broadcast_to((20 * np.array(sound) / 127.5 - 1)[:, None, None, None], (10, 16, 16, 3))
    length = (np.array(sound) + 1)[:, None, None, None]

    def alone(x0, keys):
        scaled = lambda scale: lambda x: scale * x * (1 + 0.1 * length)  # noqa: E731
        relation = lambda x, times: tuple(scaled(0.2)(x) for _ in times)  # noqa: E731
        process = Process(stage.task.schedule, "x0", relation)
        return bound_terms(process, lambda x, t, keep: scaled(0.4)(x), x0, keys)

    expected = jax.jit(alone)(jnp.float32(x0), sample_keys(5, np.array(sound)))
    np.testing.assert_allclose(rows.terms, expected.terms, rtol=1e-4)
    np.testing.assert_allclose(rows.prior, expected.prior, rtol=1e-4)
    assert result.values["bits_per_dim"] == pytest.approx(rows.total.mean())
    assert result.protocol["data"]["samples"] == COUNT and len(result.tables[0].rows) == 6
    assert "1 of 11 samples could not be used: 1 x " in result.warnings[0]
    json.dumps(dataclasses.asdict(result))


def test_batches_devices_and_a_stop_change_nothing(make_stage, data, tmp_path):
    whole = evaluate(make_stage(), data, tmp_path / "whole", batch_size=4)
    with pytest.raises(Interrupted, match="stopped on request at image 3, saved"):
        evaluate(make_stage(), data, tmp_path / "stopped", watch=Clock(0), batch_size=3)
    first = read_rows(tmp_path / "stopped").index.tolist()
    assert first == [0, 1, 2]
    few = evaluate(make_stage(), data, tmp_path / "stopped", count=2)
    assert few.values["images"] == 2
    other = evaluate(make_stage(8), data, tmp_path / "stopped", batch_size=2)
    assert other.values["images"] == 10
    ours, theirs = read_rows(tmp_path / "whole"), read_rows(tmp_path / "stopped")
    assert ours.index.tolist() == theirs.index.tolist()
    np.testing.assert_allclose(ours.terms, theirs.terms, rtol=1e-5)
    assert whole.values["bits_per_dim"] == pytest.approx(other.values["bits_per_dim"], rel=1e-6)
    assert whole.warnings == other.warnings
    files = sorted((tmp_path / "stopped").glob("*.npz"))
    times = [file.stat().st_mtime_ns for file in files]
    again = evaluate(make_stage(), data, tmp_path / "stopped")
    assert again.values == other.values
    assert [file.stat().st_mtime_ns for file in files] == times


def test_fewer_terms_are_another_bound_and_say_so(make_stage, data, tmp_path):
    result = evaluate(make_stage(), data, tmp_path, num_terms=3, count=2)
    assert [row[0] for row in result.tables[0].rows] == [6, 3, 1] and not result.values["skipped"]
    assert "the bound of 3 of 6 times: exact, but looser" in result.warnings[0]


def test_a_flow_is_measured_by_its_ode_after_a_stop_too(flow_stage, data, tmp_path):
    with pytest.raises(Interrupted, match="stopped on request at image 4, saved"):
        evaluate(flow_stage, data, tmp_path, watch=Clock(0), batch_size=4, seed=5)
    result = evaluate(flow_stage, data, tmp_path, batch_size=4, seed=5)
    rows = read_rows(tmp_path, kind=OdeRows)
    sound = np.array([i for i in range(COUNT) if i != DAMAGED])
    assert rows.index.tolist() == sound.tolist() and rows.volume.shape == (10, 2)
    flat = np.float32(20 * sound / 127.5 - 1)[:, None, None, None] * np.ones((1, 16, 16, 3))
    x = np.asarray(dequantized(jnp.asarray(flat, jnp.float32), sample_keys(5, sound)))
    nats = -stats.norm.logpdf(x, ((sound + 1) / 10)[:, None, None, None], 0.6)
    expected = nats.mean(axis=(1, 2, 3)) / np.log(2) + np.log2(127.5)
    np.testing.assert_allclose(rows.total, expected, atol=1e-3)
    values = result.values
    assert values["bits_per_dim"] == pytest.approx(expected.mean(), abs=1e-3)
    assert values["probe_error"] < 1e-5 < values["standard_error"]  # the Jacobian is diagonal
    assert values["images"] == 10 and list(values["skipped"].values()) == [1]
    protocol = result.protocol["protocol"]
    assert protocol["ode_steps"] == 40 and protocol["probes"] == 2
    assert protocol["dequantization"].startswith("uniform")
    json.dumps(dataclasses.asdict(result))
    for options, sentence in (
        ({"probes": 3}, "terms.protocol.probes: 2 there, 3 here"),
        ({"num_terms": 5}, "num_terms = 5: must be 0 for stage 'base' of kind 'flow', .* 'vp'"),
        ({"ode_steps": 1}, "ode_steps = 1: must be 0 for the default, or in 2..10000"),
        ({"probes": 1001}, "probes = 1001: must be 0 for the default, or in 1..1000"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(flow_stage, data, tmp_path, seed=5, **options)


def test_the_density_of_a_network_with_learned_guidance_says_so(flow_stage):
    rows = OdeRows(np.arange(2), np.ones(2), np.ones((2, 1)))
    for guidance, sentence in ((1.0, "held, no guidance"), (2.5, "held, the network's own 2.5 as")):
        flow = Flow(FlowConfig(mean=MeanFlowConfig(guidance=guidance)))
        task = dataclasses.replace(flow_stage.task, flow=flow)
        measure = _measure_of(dataclasses.replace(flow_stage, task=task), LikelihoodSettings())
        assert sentence in measure.protocol()["density"]
        assert bool(measure.result(rows, {}).warnings) == (guidance != 1)


def test_the_probes_error_is_of_the_mean_over_images():
    """Against many draws: the deviation of the mean of 5 images with 4 probes each."""
    rng = np.random.default_rng(0)
    draws = [OdeRows(np.arange(5), np.zeros(5), rng.normal(0, 0.3, (5, 4))) for _ in range(2000)]
    found = np.sqrt(np.mean([np.square(each.probe_error) for each in draws]))
    assert found == pytest.approx(np.std([each.total.mean() for each in draws]), rel=0.05)
    assert OdeRows(np.arange(5), np.zeros(5), np.ones((5, 1))).probe_error is None


def test_refusals(make_stage, data, tmp_path):
    stage = make_stage()
    for options, sentence in (
        ({"count": 12}, "count = 12: folder .* has 11 samples"),
        ({"count": -1}, "count = -1: must be at least 0"),
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"probes": 3}, "probes = 3: must be 0 for stage 'base' of kind 'vp', kind 'flow' alone"),
        ({"num_terms": 7}, "num_terms = 7: must be 0 for all, or in 2..6"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(stage, data, tmp_path / "none", **options)
    with pytest.raises(ValueError, match="data.resolution = 32: must be 16, that of stage 'base'"):
        evaluate(stage, dataclasses.replace(data, resolution=32), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    evaluate(stage, data, tmp_path / "some", count=2)
    for other, options, sentence in (
        (stage, {"seed": 1}, r"holds terms of something else: terms.protocol.seed: 0 there, 1"),
        (make_stage(scale=0.5), {}, r"something else: terms.network.weights"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate(other, data, tmp_path / "some", count=2, **options)
    broken = make_stage(scale=float("nan"))
    with pytest.raises(ValueError, match="the bound of sample 0 is not finite"):
        evaluate(broken, data, tmp_path / "nan", count=2)


class Enlarged:
    """Stands in for a super-resolution network that returns its low-resolution input, enlarged."""

    dtype, config = jnp.float32, "enlarged"

    def apply(self, params, x, t, *, low_res, aug_level, **kwargs):
        big = jnp.repeat(jnp.repeat(low_res, 2, axis=1), 2, axis=2)
        return big + aug_level[:, None, None, None]


def test_a_super_resolution_stage_is_given_its_own_low_resolution(make_task, data, tmp_path):
    task = make_task("sr", num_steps=4, prediction="x0")
    task = dataclasses.replace(
        task,
        denoiser=Enlarged(),
        adapter=None,
        image_encoder=None,
        conditions=(CaptionLength(), task.conditions[1]),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    stage = Stage("sr", task, {"denoiser": {}}, {}, task.sampler, mesh)
    result = evaluate(stage, dataclasses.replace(data, resolution=32), tmp_path, count=4)
    # The images are flat, so that the enlarged ones are the images.
    assert np.all(read_rows(tmp_path).x0_mse < 1e-10) and not result.protocol["adapter"]
    assert result.values["kl"] == pytest.approx(0, abs=1e-6) and result.values["decoder"] > 0
    # Its terms are not mixed with those of a condition resized otherwise.
    assert result.protocol["protocol"]["low resolution"] == "PIL's Lanczos, 8 bits"

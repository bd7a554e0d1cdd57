"""Pictures inverted and redrawn: they come back, the nearer the more steps; others are refused."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from contextdiff_jax.generation.cascade import Cascade, Stage
from contextdiff_jax.generation.inversion import Inverted, check_invertible, invert_pictures
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.runs.description import Export, StageRecord
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.flow_config import FlowConfig
from tests.fixtures.parameters import initial

REQUESTS = [{"text": "a red circle"}, {"text": None}, {"text": "two birds"}]
EDITS = [{"text": "a red bird"}, {"text": "nothing at all"}, {"text": "two birds"}]
PLAIN = SamplerConfig("ddim", 10)
GUIDED = dataclasses.replace(PLAIN, guidance_scale=4.0, threshold="static")


@pytest.fixture(scope="module")
def inverted(make_task, pictures):
    """Returns inverted(sampler, ...) of the pictures by one tiny stage with a smooth network."""

    @functools.cache
    def stage(flow):
        kind = {} if flow is None else {"kind": "flow", "flow": flow}
        task = make_task("base", use_adapter=False, num_steps=1000, **kind)
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda leaf: leaf + np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32),
            jax.device_get(initial(task.init)),
        )
        return task, params

    @functools.cache
    def run(sampler, devices=1, batch_size=16, flow=None):
        task, params = stage(flow)
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        cascade = Cascade([Stage("base", task, params, task.frozen, sampler, mesh)], mesh)
        return invert_pictures(cascade, pictures, REQUESTS, EDITS, batch_size)

    return run


@pytest.fixture(scope="module")
def pictures():
    """Smooth ones: stripes of three directions."""
    x, y = np.meshgrid(np.linspace(0, 1, 16), np.linspace(0, 1, 16))
    waves = [np.sin(6 * part) for part in (x, y, x + y)]
    return np.stack([np.stack([w, -w, w**2], -1) * 100 + 127 for w in waves]).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flow"), [("ddim", None), ("euler", FlowConfig(relation="coupling", width=8))]
)
def test_a_picture_comes_back_the_nearer_the_more_steps(name, flow, inverted, pictures):
    samplers = (SamplerConfig(name, num_steps) for num_steps in (10, 200))
    coarse, fine = (inverted(sampler, flow=flow) for sampler in samplers)
    np.testing.assert_array_equal(fine.given, pictures)
    errors = fine.errors()
    assert errors.max() < 1.5 and np.all(errors < coarse.errors() / 10), (errors, coarse.errors())
    wrong = Inverted(pictures, fine.edited, None).errors()[:2]  # drawn under another request
    assert np.all(wrong > 2 * errors[:2]), (errors, wrong)


@pytest.mark.slow
def test_an_edit_is_drawn_by_the_sampler_as_it_is(inverted):
    found, guided = inverted(PLAIN), inverted(GUIDED)
    np.testing.assert_allclose(found.edited[2], found.redrawn[2], atol=1e-4)  # its own request
    differ = np.abs(found.edited - found.redrawn).max(axis=(1, 2, 3))
    assert np.all(differ[:2] > 0.01), differ
    np.testing.assert_allclose(guided.redrawn, found.redrawn, atol=1e-4)  # never guided
    assert np.abs(guided.edited).max() <= 1 and np.abs(guided.edited - found.edited).max() > 0.01


@pytest.mark.slow
def test_neither_batches_nor_devices_change_a_picture(inverted):
    """The second batch has one picture, and is filled up."""
    whole, parts = inverted(GUIDED), inverted(GUIDED, devices=2, batch_size=2)
    np.testing.assert_allclose(parts.redrawn, whole.redrawn, atol=1e-3)
    np.testing.assert_allclose(parts.edited, whole.edited, atol=1e-3)


def test_errors_are_in_grey_levels_and_rows_side_by_side():
    given = np.full((2, 4, 4, 3), 100, np.uint8)
    given[1] = 30
    redrawn = np.stack([given[0] + 3.0, given[1] + 0.2]) / 127.5 - 1  # the last rounds to itself
    inverted = Inverted(given, redrawn, -np.ones_like(redrawn))
    np.testing.assert_allclose(inverted.errors(), [3, 0])
    rows = (inverted.rows()[:, 0, 0, 0] + 1) * 127.5
    np.testing.assert_allclose(rows, [100, 103, 0, 30, 30.2, 0], atol=1e-4)
    assert Inverted(given, redrawn, None).rows().shape == (4, 4, 4, 3)


@pytest.mark.parametrize(
    ("stage", "settings", "sentence"),
    [
        ("sr", [], "stage 'sr' cannot invert pictures: it enlarges those of a stage before it"),
        ("base", ["name=ddpm"], "stage 'base' .* by sampler ddpm with eta 0: must be ddim"),
        ("base", ["base.eta=0.5"], "sampler ddim with eta 0.5: must be ddim with eta 0 or euler, "),
        ("base", ["name=dpm_solver++"], "sampler dpm_solver"),
        ("base", ["stepz=1"], "--sampler=stepz=1: field must be one of"),
    ],
)
def test_what_cannot_be_inverted_is_refused_before_it_is_loaded(
    stage, settings, sentence, make_config
):
    export = Export(2, {stage: StageRecord(1, {})}, make_config())
    with pytest.raises(ValueError, match=sentence):
        check_invertible(export, settings)
    export = Export(2, {"base": StageRecord(1, {}), "sr": StageRecord(1, {})}, make_config())
    assert check_invertible(export, ["sr.name=ddpm"]) == "base"

"""Kind flow in a task: gradients of the two losses, fitting, keeping and refusing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from scipy import fft

from configs import classes, stable_diffusion
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.condition import Given
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, Example
from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.relations import bounded
from contextdiff_jax.runs.abstract import abstract_task
from contextdiff_jax.runs.build import build_task
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks import flow_objective
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow import Flow
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.flow_objective import flow_loss
from contextdiff_jax.tasks.objective import Draw
from contextdiff_jax.tasks.whitening import NAME, fit, moments
from contextdiff_jax.training.parameter_names import by_name
from tests.fixtures.parameters import initial
from tests.tasks.small_denoiser import Small, random_batch

# -- the objective --------------------------------------------------------------------------------


def test_one_backward_pass_descends_the_error_and_the_kinetic_energy():
    """Against autodiff of L for the denoiser, and of E|u|^2 - L for the relation."""
    rng = np.random.default_rng(0)
    x0, noise, slope, offset = jnp.asarray(rng.normal(size=(4, 3, 4, 4, 1)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    draw = Draw(x0, jnp.array([90, 500, 910]), noise, jnp.ones(3, bool))

    def parts(weight, raw):
        process = FlowProcess(LinearPath(1000), "v", None, None, bounded(*raw, 3.0))

        def denoise(x, t, keep):
            return (
                jnp.tanh(jnp.einsum("bhwc,hv->bvwc", x, weight)) + x * t[:, None, None, None] / 999
            )

        x_t, u, _ = process.between(x0, noise, draw.t)
        error = jnp.mean(jnp.square(denoise(x_t, draw.t, None) - u))
        loss, _ = flow_loss(DiffusionConfig(kind="flow"), process, denoise, draw)
        return loss, error, jnp.mean(jnp.square(u)) - error

    gradients = jax.jit(jax.jacrev(lambda weight, raw: jnp.stack(parts(weight, raw)), (0, 1)))
    of_weight, (of_slope, of_offset) = gradients(weight, (slope, offset))
    np.testing.assert_allclose(of_weight[0], of_weight[1], rtol=1e-4, atol=1e-6)
    for loss, _, energy in (of_slope, of_offset):
        assert np.abs(loss).max() > 1e-3
        np.testing.assert_allclose(loss, energy, rtol=1e-4, atol=1e-6)
    loss, error, _ = parts(weight, (slope, offset))
    assert float(loss) == pytest.approx(float(error), rel=1e-6)


# -- whitening ------------------------------------------------------------------------------------


class Pictures:
    """A source of random pictures, the third of which is damaged."""

    name = "pictures"

    def __init__(self, seed=0, count=40, side=6):
        rng = np.random.default_rng(seed)
        self.pictures = rng.integers(0, 200, (count, side, side, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        if index == 3:
            raise DamagedSample(str(index), "is not there")
        return Example(self.pictures[index], ("a",), str(index))


def test_whitening_is_fitted_to_the_sound_pictures_and_their_mirror_images():
    source = Pictures()
    found = fit(source, flip=True)
    sound = np.delete(source.pictures, 3, axis=0) / 127.5 - 1
    both = np.concatenate([sound, sound[:, :, ::-1]])
    np.testing.assert_allclose(found.mean, both.mean(0), atol=1e-6)
    modes = fft.dctn(both, norm="ortho", axes=(1, 2, 3))
    np.testing.assert_allclose(found.std, modes.std(0), rtol=1e-5)
    few = fit(source, flip=True, at_a_time=7)
    np.testing.assert_allclose(few.mean, found.mean, atol=1e-6)
    np.testing.assert_allclose(few.std, found.std, rtol=1e-5)


def test_whitening_is_fitted_once_and_not_taken_of_other_data(tmp_path):
    folder, data = epath.Path(tmp_path) / "run", DataConfig(resolution=6)
    first = moments(Pictures(), data, folder, "config.runs.base")
    (tmp_path / "run" / NAME).stat()
    kept = np.load(tmp_path / "run" / NAME)
    np.testing.assert_array_equal(kept["std"], first.std)
    again = moments(Pictures(), data, folder, "config.runs.base")
    np.testing.assert_array_equal(again.mean, first.mean)
    with pytest.raises(ValueError, match="is of other data than config.runs.base.data"):
        moments(Pictures(seed=1), data, folder, "config.runs.base")
    for content in (b"PK no archive", b""):
        (tmp_path / "run" / NAME).write_bytes(content)
        with pytest.raises(ValueError, match="whitening.npz cannot be read"):
            moments(Pictures(), data, folder, "config.runs.base")
    with pytest.raises(ValueError, match="finds 1 sound pictures in pictures"):
        fit(Pictures(count=1))


# -- a task ---------------------------------------------------------------------------------------


def flow_config(**settings):
    """classes:test as a flow."""
    config = cfg.from_config_dict(classes.get_config("test"))
    run = config.runs["base"]
    diffusion = DiffusionConfig(kind="flow", flow=FlowConfig(**settings))
    runs = {**config.runs, "base": cfg.with_task(run, diffusion=diffusion)}
    return dataclasses.replace(config, use_adapter=False, runs=runs)


def make_flow(source=None, **settings):
    """Returns the task of a config, with a small denoiser."""
    task = build_task(flow_config(**settings), "base", None, source)
    return dataclasses.replace(task, denoiser=Small())


@pytest.mark.parametrize(
    "settings",
    [
        {"relation": "affine", "by_condition": True, "modes": 3},
        {"relation": "coupling", "width": 8},
        {"relation": "whitening"},
    ],
)
def test_relations_begin_as_none_and_train_or_stay(settings):
    """Every relation but the fitted one begins at r = 0, z = eps, and gets a gradient."""
    source = Pictures(side=16) if settings["relation"] == "whitening" else None
    task = make_flow(source, **settings)
    params = initial(task.init)
    batch = random_batch(task)

    def both(params):
        return jax.value_and_grad(task.loss, has_aux=True)(params, {}, batch, jax.random.key(1))

    (loss, metrics), gradient = jax.jit(both)(params)
    assert np.isfinite(loss)
    moved = {name: np.abs(leaf).max() for name, leaf in by_name(gradient["relation"]).items()}
    if settings["relation"] == "whitening":
        assert set(moved.values()) == {0.0} and float(metrics["relation_rms"]) > 0.1
        np.testing.assert_array_equal(params["relation"]["std"], fit(source).std)
    else:
        assert float(metrics.get("relation_rms", metrics.get("coupling_kl"))) == 0.0
        assert moved["out/kernel"] > 0 and moved.get("slope", 1) > 0


def test_a_flow_draws_with_every_sampler_and_nothing_of_its_relation():
    """Without a threshold other numbers of the relation draw the same pictures, to the bit."""
    task = make_flow(relation="affine")
    params = initial(task.init)
    other = params | {"relation": jax.tree.map(lambda leaf: leaf + 1.0, params["relation"])}
    batch, keys = random_batch(task), sample_keys(0, jnp.arange(4))
    draw = jax.jit(task.sample, static_argnums=4)
    for name in ("euler", "heun"):
        sampler = dataclasses.replace(task.sampler, name=name, threshold="none")
        first, second = (np.asarray(draw(p, {}, batch, keys, sampler)) for p in (params, other))
        assert np.isfinite(first).all() and np.ptp(first) > 0.1
        np.testing.assert_array_equal(first, second)


def test_diagnostics_are_errors_at_four_times():
    task = make_flow()
    params = initial(task.init)
    found = jax.jit(task.diagnose)(params, {}, random_batch(task), jax.random.key(2))
    assert set(found) == {f"error_at_{share}" for share in flow_objective.QUARTERS}
    assert all(np.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flow.beta": 0.0}, "diffusion.flow.beta = 0.0: must be above 0"),
        ({"flow.relation": "coupling", "flow.beta": -5.0}, "flow.beta = -5.0: must be above 0"),
        ({"flow.shift": -1.0}, "diffusion.flow.shift = -1.0: must be above 0"),
        ({"flow.limit": 0.0}, "diffusion.flow.limit = 0.0: must be above 0"),
        ({"flow.modes": 0}, "diffusion.flow.modes = 0: must be at least 1"),
        ({"flow.relation": "paper"}, "flow.relation = 'paper': must be one of none, affine"),
        (
            {"flow.relation": "coupling", "flow.by_condition": True},
            "by_condition = True: must be False, the default, relation 'coupling' does not read it",
        ),
        ({"flow.relation": "coupling", "flow.width": 12}, "width = 12: must be a multiple of 8"),
        (
            {"flow.beta": 2.0},
            "flow.beta = 2.0: must be 5.0, the default, relation 'coupling' alone",
        ),
        ({"time_mean": 1.0}, "diffusion.time_mean = 1.0: must be 0.0, .* 'logit_normal' alone"),
        (
            {"times": "logit_normal", "time_std": 0.0},
            "diffusion.time_std = 0.0: must be a finite number above 0",
        ),
        (
            {"flow.relation": "affine", "flow.modes": 4},
            "flow.modes = 4: must be 8, the default, by_condition = True alone reads it",
        ),
        ({"flow.relation": "whitening", "flow.limit": 1.0}, "flow.limit = 1.0: must be 3.0"),
        ({"prediction": "eps"}, "prediction = 'eps': must be 'v' or 'x0' of kind 'flow'"),
        ({"objective": "bound"}, "objective = 'bound': must be one of simple, mean_flow of kind"),
        (
            {"kind": "vp", "flow.relation": "affine"},
            "flow.relation = 'affine': must be 'none', the default, .*kind 'vp' does not read it",
        ),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(changes, sentence):
    values = cfg.to_config_dict(flow_config()).to_dict()
    for key, value in changes.items():
        section = values["runs"]["base"]["task"]["diffusion"]
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: dataclasses.replace(c, use_adapter=True),
            "kind = 'flow': not with config.use_adapter = True, the paper's adapter depends on the",
        ),
        (lambda c: sampler(c, name="plms"), "sampler.name = 'plms': not of kind 'flow'"),
        (lambda c: sampler(c, guidance_low=2.0), r"guidance_low = 2.0: must be a time in \[0, 1\]"),
        (lambda c: sampler(c, num_steps=1001), "num_steps = 1001: .*must be in 1..1000"),
        (
            lambda c: relation(c, "coupling", name="ddpm"),
            "sampler.name = 'ddpm': not with a coupling",
        ),
        (
            lambda c: relation(c, "coupling", name="ddim", eta=0.5),
            "sampler.eta = 0.5: not with a coupling",
        ),
        (lambda c: decay(relation(c, "whitening")), "weight_decay = 0.1: must be 0 where .*fits"),
    ],
)
def test_what_does_not_go_together_is_refused(change, sentence):
    validate(flow_config())
    with pytest.raises(ValueError, match=sentence):
        validate(change(flow_config()))


@pytest.mark.parametrize("kind", ["affine", "whitening", "scaled"])
@pytest.mark.parametrize("settings", [{"name": "ddpm"}, {"name": "ddim", "eta": 0.5}])
def test_ancestral_steps_go_with_a_relation_that_is_affine(kind, settings):
    validate(relation(flow_config(), kind, **settings))


def changed(config, **changes):
    runs = {**config.runs, "base": dataclasses.replace(config.runs["base"], **changes)}
    return dataclasses.replace(config, runs=runs)


def sampler(config, **settings):
    task = config.runs["base"].task
    task = dataclasses.replace(task, sampler=dataclasses.replace(task.sampler, **settings))
    return changed(config, task=task)


def relation(config, kind, /, **settings):
    config = sampler(config, **settings)
    task = config.runs["base"].task
    diffusion = dataclasses.replace(task.diffusion, flow=FlowConfig(relation=kind))
    return changed(config, task=dataclasses.replace(task, diffusion=diffusion))


def decay(config):
    optimizer = dataclasses.replace(config.runs["base"].optimizer, weight_decay=0.1)
    return changed(config, optimizer=optimizer)


@functools.partial(jax.jit, static_argnums=0)
def slope(flow, given):
    """Returns the slope of a relation that has moved off its beginning."""
    params = nn.unbox(flow.init(jax.random.key(1), (4, 4, 1), given))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return flow.process(LinearPath(10), "v", params, given, None).context.slope


def test_a_shuffled_relation_is_told_of_another_picture():
    """r of row n is that of the condition of row n - 1; the denoiser's conditions are its own."""
    plain = FlowConfig(relation="affine", by_condition=True, modes=2, width=8)
    tokens, there = jax.random.normal(jax.random.key(0), (3, 2, 5)), jnp.ones((3, 2), bool)
    given = {"label": Given(there[:, 0], tokens, there)}
    slopes = []
    for config in (plain, dataclasses.replace(plain, shuffle_condition=True)):
        slopes.append(np.asarray(slope(Flow(config), given)))
    own, shuffled = slopes
    assert np.abs(own - shuffled).max(axis=(1, 2, 3)).min() > 1e-5
    np.testing.assert_allclose(shuffled, own[[2, 0, 1]], rtol=1e-6)


def test_a_scaled_path_is_another_schedule():
    """x_t is that of x0 times (1 - t)(1 + t scale), and x0 comes back of the landing."""
    flow = Flow(FlowConfig(relation="scaled", scale=2.0))
    assert flow.init(jax.random.key(0), (4, 4, 3), {}) == {}
    process = flow.process(LinearPath(10), "v", {}, {}, None)
    x0, noise = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
    t = jnp.array([3, 8])
    time = (t / 10)[:, None, None, None]
    x_t, u, _ = process.between(x0, noise, t)
    np.testing.assert_allclose(x_t, (1 - time) * (1 + 2 * time) * x0 + time * noise, atol=1e-5)
    seen = []
    process.changed(process.x0_of(u, x_t, t), t, lambda x: seen.append(x) or x)
    np.testing.assert_allclose(seen[0], x0, atol=1e-4)
    assert process.ancestral


def test_a_relation_reads_the_condition_and_leaves_it_to_the_denoiser():
    """Other tokens make another r; no gradient goes there, and hidden tokens are not seen."""
    flow = Flow(FlowConfig(relation="affine", by_condition=True, modes=2, width=8))
    tokens = jax.random.normal(jax.random.key(0), (3, 2, 5))
    shown, present = jnp.array([[True, False]] * 3), jnp.array([True, True, False])

    def slope_of(tokens):
        return slope(flow, {"label": Given(present, tokens, shown)})

    found = np.asarray(slope_of(tokens))
    assert np.abs(found[0] - found[1]).max() > 1e-4
    np.testing.assert_allclose(found[:, 2:], 3 * np.tanh(0.1 / 3), rtol=1e-6)  # beyond the modes
    moved = np.asarray(slope_of(tokens + jnp.array([0.0, 1.0])[:, None]))
    np.testing.assert_array_equal(moved, found)
    moved = np.asarray(slope_of(tokens + 1.0))
    assert (np.abs(moved - found).max(axis=(1, 2, 3)) > 1e-4).tolist() == [True, True, False]
    np.testing.assert_array_equal(jax.grad(lambda tokens: slope_of(tokens).sum())(tokens), 0)


def test_relations_that_cannot_be_made_are_refused():
    key, shape = jax.random.key(0), (6, 6, 3)
    with pytest.raises(ValueError, match="by_condition = True: must be False, no condition here"):
        Flow(FlowConfig(relation="affine", by_condition=True)).init(key, shape, {})
    fitted = Flow(FlowConfig(relation="whitening"), fit(Pictures()))
    assert fitted.init(key, shape, {})["std"].value.shape == shape
    with pytest.raises(ValueError, match=r"is fitted to pictures \(6, 6, 3\): must be \(4, 4, 8\)"):
        fitted.init(key, (4, 4, 8), {})


def test_the_shift_follows_the_resolution():
    diffusion = DiffusionConfig(kind="flow", flow=FlowConfig(shift=2.0, shift_reference=16))
    assert diffusion.schedule_at(16).shift == 2.0 and diffusion.schedule_at(64).shift == 8.0
    assert DiffusionConfig(kind="flow").schedule_at(64).shift == 1.0


def test_pictures_of_a_flow_in_latents_depend_on_its_shift():
    """What a folder of pictures is begun with; a path has no table of alpha_bar."""
    config = cfg.from_config_dict(stable_diffusion.get_config("taef2"))
    told = []
    for shift in (1.0, 3.0, 3.0):
        flow = DiffusionConfig(kind="flow", flow=FlowConfig(shift=shift))
        base = cfg.with_task(config.runs["base"], diffusion=flow)
        changed = dataclasses.replace(config, runs={**config.runs, "base": base})
        changed = dataclasses.replace(changed, use_adapter=False)
        told.append(repr(abstract_task(changed, "base").described()))
    assert told[0] != told[1] and told[1] == told[2]

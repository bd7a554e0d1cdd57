"""Objective mean_flow: against the closed form, finite differences, and flow matching."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from contextdiff_jax.diffusion.flow import FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.relations import Affine, bounded
from contextdiff_jax.networks.conditioning import embedded_times
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.dot_product_attention import attend
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks import mean_flow_objective
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow_config import FlowConfig, MeanFlowConfig
from contextdiff_jax.tasks.flow_objective import flow_loss
from contextdiff_jax.tasks.mean_flow_objective import draw_steps, mean_flow_loss
from contextdiff_jax.tasks.objective import Draw

T = 1000
MEAN, STD = 0.4, 0.3  # of the data, a Gaussian at each value
RHO = 2.0  # of the relation r = RHO (x0 - MEAN)


def config(**mean):
    mean = MeanFlowConfig(**{"power": 0.0, **mean})
    return DiffusionConfig(kind="flow", objective="mean_flow", flow=FlowConfig(mean=mean))


def path_of(related):
    """Returns the process, and mean and deviation of x_t at times t in [0, 1]."""
    rho = RHO if related else 0.0
    relation = Affine(jnp.float32(rho), jnp.float32(-rho * MEAN)) if related else None
    process = FlowProcess(LinearPath(T), "v", None, None, relation, mean_velocities=True)
    return process, lambda t: (
        (1 - t) * MEAN,
        jnp.sqrt(jnp.square((1 - t) * (1 + t * rho) * STD) + jnp.square(t)),
    )


def expanded(values, x):
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def closed_form(law, shift=1.0):
    """Returns the denoiser that knows the mean velocity: the flow keeps each value's quantile."""

    def denoise(x, told, keep):
        k, end = told[:, 0], told[:, 1]
        place = k / T
        t = shift * place / (1 + (shift - 1) * place)
        place = end / T
        s = shift * place / (1 + (shift - 1) * place)
        # Where no step is left, the limit: a step of a little more.
        s = jnp.where(k == end, t - 1e-3, s)
        (mean_t, std_t), (mean_s, std_s) = law(t), law(s)
        ends_at = expanded(mean_s, x) + expanded(std_s / std_t, x) * (x - expanded(mean_t, x))
        return (x - ends_at) / expanded(t - s, x)

    return denoise


@pytest.mark.parametrize("related", [False, True])
def test_the_closed_form_is_what_the_loss_learns(related):
    """The gradient along an error of its slope vanishes there, and nowhere near."""
    process, law = path_of(related)
    count = 2**15
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, count, 1, 1, 1)).astype(np.float32)
    steps = rng.integers(0, T, (2, count))
    t, s = steps.max(0) + 1, steps.min(0)
    draw = Draw(
        jnp.asarray(MEAN + STD * x0), jnp.asarray(t), jnp.asarray(noise), {}, jnp.asarray(s)
    )
    known = closed_form(law)

    @jax.jit
    @jax.grad
    def gradient(wrong):
        def denoise(x, told, keep):
            shift, slope = wrong
            centred = x - expanded((1 - told[:, 0] / T) * MEAN, x)
            return known(x, told, keep) + shift + slope * centred

        return mean_flow_loss(config(), process, denoise, draw)[0]

    at_truth = gradient(jnp.zeros(2))
    beside = [gradient(jnp.array(wrong)) for wrong in ((0.3, 0.0), (0.0, 0.3))]
    assert np.abs(at_truth).max() < 0.02
    assert abs(beside[0][0]) > 0.3 and abs(beside[1][1]) > 0.1


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_the_slope_is_the_finite_difference_along_the_flow(prediction):
    """Against central differences in float64 of the same network in NumPy."""
    rng = np.random.default_rng(1)
    path = LinearPath(T, shift=3.0)
    process = FlowProcess(path, prediction, None, None, mean_velocities=True)
    x, velocity = rng.normal(size=(2, 5, 2, 2, 1))
    weight = rng.normal(size=(2, 2))
    t, s = np.array([1, 300, 500, 999, 1000]), np.array([0, 299, 20, 500, 0])

    def network(x, told, end, numbers):
        told, end = (value.reshape(-1, 1, 1, 1) for value in (told, end))
        return numbers.tanh(numbers.einsum("bhwc,hv->bvwc", x, weight)) + x * numbers.cos(
            told / 300
        ) * numbers.sin(end / 200 + 1)

    def mean(moved):
        time = path.levels(t)[1] + moved
        told = path.places(time)
        predicted = network(x + moved * velocity, told, s, np)
        time = time.reshape(-1, 1, 1, 1)
        return predicted if prediction == "v" else (x + moved * velocity - predicted) / time

    draw = Draw(None, jnp.asarray(t), None, {}, jnp.asarray(s))

    def denoise(x, told, keep):
        return network(x, told[:, 0], told[:, 1], jnp)

    arrays = (jnp.asarray(each, jnp.float32) for each in (x, velocity))
    predicted, slope = mean_flow_objective.with_slope(process, denoise, draw, *arrays)
    step = 1e-5
    expected = (mean(step) - mean(-step)) / (2 * step)
    np.testing.assert_allclose(predicted, network(x, t, s, np), rtol=2e-4, atol=2e-5)
    size = np.abs(expected).max(axis=(1, 2, 3), keepdims=True)  # of x0, huge where t is small
    np.testing.assert_allclose(slope / size, expected / size, atol=3e-3)


def test_the_slope_is_along_the_network_s_velocity_so_the_noise_of_u_is_not_multiplied():
    """Pairs of x0 and noise with one x_t: their errors differ by their u alone."""
    rng = np.random.default_rng(0)
    x_t, x0, other, weight = rng.normal(size=(4, 3, 3, 3, 3)).astype(np.float32)
    t, ends = jnp.array([300, 600, 900]), jnp.array([0, 100, 800])
    process = FlowProcess(LinearPath(T), "v", None, None, mean_velocities=True)
    level = expanded(np.asarray(t) / T, x_t)

    def errors(clean):
        noise = (x_t - (1 - level) * clean) / level

        def loss(shift):
            def denoise(x, told, keep):
                seen = jnp.einsum("bhwc,hvcd->bvwd", x, 3 * weight)
                return jnp.tanh(seen) * jnp.cos(expanded(told[:, 0], x) / 100) + shift

            draw = Draw(jnp.asarray(clean), t, jnp.asarray(noise), {}, ends)
            return mean_flow_loss(config(), process, denoise, draw)[0]

        # The slope does not see the shift: half of a square's gradient is its root.
        return jax.grad(loss)(jnp.zeros_like(x_t)) * x_t.size / 2, noise - clean

    (first, u), (second, other_u) = errors(x0), errors(other)
    np.testing.assert_allclose(first - second, other_u - u, atol=2e-3)


@pytest.mark.parametrize(
    ("shift", "related"), [(1.0, False), (1.0, True), (3.0, False), (3.0, True)]
)
def test_one_call_and_four_end_where_the_flow_does(shift, related):
    """On the closed form, whatever the path: MEAN + STD eps, the quantile of the noise."""
    process, law = path_of(related)
    process = dataclasses.replace(process, schedule=LinearPath(T, shift))
    denoise = closed_form(law, shift)
    x = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    for calls in (1, 2, 4):
        sampler = SamplerConfig(name="mean_flow", num_steps=calls)
        drawn = loop.sample(process, denoise, None, x.shape[1:], sampler, x_init=x)
        np.testing.assert_allclose(drawn, MEAN + STD * x, atol=2e-5)
    euler = SamplerConfig(name="euler", num_steps=2)
    straight = loop.sample(
        process,
        lambda x, t, keep: denoise(x, jnp.stack([t, t], 1), keep),
        None,
        x.shape[1:],
        euler,
        x_init=x,
    )
    assert np.abs(straight - (MEAN + STD * x)).max() > 0.05  # what the second time is for


def test_without_steps_it_is_flow_matching_with_the_relation_s_kinetic_energy():
    rng = np.random.default_rng(0)
    x0, noise, slope, offset = jnp.asarray(rng.normal(size=(4, 3, 4, 4, 1)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    t = jnp.array([90, 500, 910])

    def of(loss, settings, ends):
        def value(weight, raw):
            process = FlowProcess(
                LinearPath(T), "v", None, None, bounded(*raw, 3.0), mean_velocities=True
            )

            def denoise(x, told, keep):
                time = told if told.ndim == 1 else told[:, 0] + (told[:, 0] - told[:, 1]) ** 2
                return jnp.tanh(jnp.einsum("bhwc,hv->bvwc", x, weight)) + x * expanded(time, x) / T

            return loss(settings, process, denoise, Draw(x0, t, noise, {}, ends))[0]

        return jax.jit(jax.value_and_grad(value, (0, 1)))(weight, (slope, offset))

    plain = of(flow_loss, DiffusionConfig(kind="flow"), None)
    mean = of(mean_flow_loss, config(), t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, mean)
    # Where all have a step the relation learns nothing.
    value, (of_weight, of_relation) = of(mean_flow_loss, config(), t - 50)
    assert np.isfinite(value) and np.abs(of_weight).max() > 1e-3
    assert max(np.abs(leaf).max() for leaf in of_relation) == 0.0


def test_learned_guidance_is_the_mixed_velocity_where_a_condition_is_seen():
    rng = np.random.default_rng(0)
    x0, noise = jnp.asarray(rng.normal(size=(2, 2, 2, 2, 1)), jnp.float32)
    process = FlowProcess(LinearPath(T), "v", None, None, mean_velocities=True)
    keep = {"label": jnp.array([True, False]), "text": jnp.array([False, False])}
    t = jnp.array([400, 700])

    def denoise(x, told, keep):
        shown = expanded(keep["label"] | keep["text"], x)
        return jnp.where(shown, 0.0, 2.0) * jnp.ones_like(x)

    draw = Draw(x0, t, noise, keep, t)
    u = np.asarray(noise - x0)
    expected = np.mean([np.square(3 * u[0] - 2 * 2.0).mean(), np.square(2.0 - u[1]).mean()])
    loss, metrics = mean_flow_loss(config(guidance=3.0), process, denoise, draw)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    energy = np.mean([np.square(3 * u[0] - 2 * 2.0).mean(), np.square(u[1]).mean()]) - expected
    assert float(metrics["kinetic_energy"]) == pytest.approx(float(energy), rel=1e-4)
    with pytest.raises(ValueError, match="guidance = 3.0: must be 1, this task has no condition"):
        mean_flow_loss(config(guidance=3.0), process, denoise, dataclasses.replace(draw, keep={}))


def test_the_weight_lets_all_steps_add_the_same_to_the_loss():
    process = FlowProcess(LinearPath(T), "v", None, None, mean_velocities=True)
    noise = jnp.stack([jnp.full((2, 2, 1), size) for size in (1.0, 10.0, 100.0)])
    t, size = jnp.array([10, 20, 30]), np.array([1.0, 10.0, 100.0])

    @jax.jit
    def gradients(ends):
        draw = Draw(jnp.zeros_like(noise), t, noise, {}, ends)

        def loss(scale, power):
            def denoise(x, told, keep):
                return x * 0 + expanded(scale, x)

            return mean_flow_loss(config(power=power), process, denoise, draw)[0]

        return [jax.grad(loss)(jnp.zeros(3), power) for power in (0.0, 1.0)]

    plain, weighted = gradients(t - 5)
    np.testing.assert_allclose(plain, -2 * size / 3, rtol=1e-5)
    weight = 1 / np.square(size)
    np.testing.assert_allclose(weighted, -2 * size * weight / weight.mean() / 3, rtol=2e-3)
    # Two steps and a velocity: the mean is that of the steps alone.
    plain, weighted = gradients(t - jnp.array([5, 5, 0]))
    np.testing.assert_allclose(plain, -2 * size / 3, rtol=1e-5)
    weight = np.array([*(weight[:2] / weight[:2].mean()), 1.0])
    np.testing.assert_allclose(weighted, -2 * size * weight / 3, rtol=2e-3)
    plain, weighted = gradients(t)  # of the velocity: its mean, whatever the weight of steps
    np.testing.assert_allclose(plain, -2 * size / 3, rtol=1e-5)
    np.testing.assert_array_equal(plain, weighted)


def test_a_share_of_the_examples_has_steps_of_all_lengths():
    flow = FlowConfig(mean=MeanFlowConfig(share=0.25))
    config = DiffusionConfig(kind="flow", objective="mean_flow", flow=flow)
    path = LinearPath(T)
    t, s = (np.asarray(each) for each in draw_steps(config, path, jax.random.key(0), 4000))
    apart = s < t
    assert np.mean(apart) == pytest.approx(0.25, abs=0.001)
    assert np.array_equal(s[~apart], t[~apart]) and s.min() >= 0 and 1 <= t.min() <= t.max() <= T
    # The lengths of steps between two uniform times have the mean a third.
    assert np.mean((t - s)[apart]) / T == pytest.approx(1 / 3, abs=0.03)
    assert np.mean(t[~apart]) / T == pytest.approx(1 / 2, abs=0.02)
    middle = dataclasses.replace(config, times="logit_normal", time_mean=-0.4)
    t, s = draw_steps(middle, path, jax.random.key(0), 4000)
    assert np.median(t[s == t]) / T == pytest.approx(1 / (1 + np.exp(0.4)), abs=0.02)


# -- networks and tasks ---------------------------------------------------------------------------


def network_of(dtype):
    settings = {"width": 8, "multipliers": (1,), "num_blocks": 1, "attention_levels": (0,)}
    settings |= {"head_dim": 8, "groups": 4, "text_dim": 8, "text_width": None}
    settings |= {"remat": "blocks", "attention_implementation": "xla", "scan_blocks": False}
    return UNet(UNetConfig(**settings), dtype)


def test_a_network_begins_as_one_of_single_times_and_has_a_derivative():
    """Through rematerialised blocks and attention, against finite differences."""
    network = network_of(jnp.float32)
    x, dx = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    text, t = jax.random.normal(jax.random.key(1), (2, 3, 8)), jnp.array([300.0, 800.0])
    ends = jnp.array([300.0, 0.0])
    shapes = jax.eval_shape(network.init, jax.random.key(2), x, jnp.stack([t, t], 1), text)
    leaves, tree = jax.tree.flatten(nn.unbox(shapes["params"]))
    rng = np.random.default_rng(0)
    drawn = [rng.normal(0, 0.2, leaf.shape).astype(np.float32) for leaf in leaves]
    params = jax.tree.unflatten(tree, drawn)

    @jax.jit
    def moving(params, x, t, dx):
        def of(x, t):
            return network.apply({"params": params}, x, jnp.stack([t, ends], axis=1), text)

        return jax.jvp(of, (x, t), (dx, jnp.ones(2)))

    tangent, step = moving(params, x, t, dx)[1], 3e-3
    ahead, behind = (moving(params, x + h * dx, t + h, dx)[0] for h in (step, -step))
    expected = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(tangent, expected, atol=0.01 * np.abs(expected).max())
    # As it begins, the last layer of what a step's length adds is zero.
    span = params["conditioning"]["span"]
    span = span | {"out": jax.tree.map(np.zeros_like, span["out"])}
    begun = params | {"conditioning": params["conditioning"] | {"span": span}}
    single = jax.jit(lambda params: network.apply({"params": params}, x, t, text))(begun)
    np.testing.assert_allclose(single, moving(begun, x, t, dx)[0], atol=1e-5)
    assert np.abs(single - moving(params, x, t, dx)[0]).max() > 1e-2


def test_the_span_of_a_step_begins_as_zero():
    times = jnp.array([[300.0, 300.0], [800.0, 0.0]])

    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, t):
            return embedded_times(t, 4, 8)

    @jax.jit
    def both():
        params = Embedded().init(jax.random.key(0), times)
        alone = {"params": {"time": params["params"]["time"]}}
        return Embedded().apply(params, times), Embedded().apply(alone, times[:, 0])

    np.testing.assert_array_equal(*both())


def test_attention_has_a_derivative_in_16_bit():
    """Forwards as backwards: <gradient, tangent> by both, for products of bfloat16."""

    @jax.jit
    def both(query, key, along):
        def total(query):
            attended = attend(query, key, key, implementation="xla")
            return jnp.sum(jnp.square(attended.astype(jnp.float32)))

        gradient = jax.grad(total)(query).astype(jnp.float32)
        forwards = jax.jvp(total, (query,), (along,))[1]
        return forwards, jnp.sum(gradient * along.astype(jnp.float32))

    drawn = np.random.default_rng(0).normal(size=(3, 1, 4, 2, 8))
    forwards, backwards = both(*(jnp.asarray(each, jnp.bfloat16) for each in drawn))
    np.testing.assert_allclose(forwards, backwards, rtol=0.05)

"""Layers against torch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from contextdiff_jax.networks.layers import (
    Conv,
    Dense,
    GroupNorm,
    LayerNorm,
    downsample_mean,
    resize_bilinear,
    sinusoidal_embedding,
    upsample_nearest,
)

RNG = np.random.default_rng(1)
IMAGE = RNG.normal(2.0, 3.0, (2, 6, 8, 12)).astype(np.float32)


def test_dense_is_torch_linear(random_params, oracle):
    module = Dense(5, ("embed", "mlp"))
    params = random_params(module, IMAGE)
    got = module.apply({"params": params}, IMAGE)
    np.testing.assert_allclose(got, oracle.dense(params, oracle.tensor(IMAGE)), atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_conv_is_torch_conv_with_symmetric_padding(random_params, oracle, kernel_size, stride):
    module = Conv(7, kernel_size=kernel_size, stride=stride)
    params = random_params(module, IMAGE)
    want = oracle.numpy_image(oracle.conv(params, oracle.image(IMAGE), stride))
    np.testing.assert_allclose(module.apply({"params": params}, IMAGE), want, atol=2e-5)


def test_conv_padding_can_be_one_sided(random_params, oracle):
    module = Conv(7, stride=2, padding=((0, 1), (0, 1)))
    params = random_params(module, IMAGE)
    padded = oracle.functional.pad(oracle.image(IMAGE), (0, 1, 0, 1))
    kernel = oracle.tensor(params["kernel"]).permute(3, 2, 0, 1)
    want = oracle.functional.conv2d(padded, kernel, oracle.tensor(params["bias"]), stride=2)
    np.testing.assert_allclose(
        module.apply({"params": params}, IMAGE), oracle.numpy_image(want), atol=2e-5
    )


def test_group_norm_is_torch_group_norm(random_params, oracle):
    module = GroupNorm(groups=4)
    params = random_params(module, IMAGE)
    want = oracle.group_norm(params, oracle.image(IMAGE), 4)
    got = module.apply({"params": params}, IMAGE)
    np.testing.assert_allclose(got, oracle.numpy_image(want), atol=1e-5)

    scale, shift = RNG.normal(size=(2, 2, 12)).astype(np.float32)
    want = want * (1 + oracle.tensor(scale)[:, :, None, None])
    want = want + oracle.tensor(shift)[:, :, None, None]
    got = module.apply({"params": params}, IMAGE, scale, shift)
    np.testing.assert_allclose(got, oracle.numpy_image(want), atol=1e-5)


def test_the_gradient_of_group_norm_is_torch_s(random_params, oracle):
    module = GroupNorm(groups=4)
    params = random_params(module, IMAGE)
    weights = RNG.normal(size=IMAGE.shape).astype(np.float32)

    def loss(x):
        return jnp.sum(weights * module.apply({"params": params}, x))

    image = oracle.image(IMAGE).requires_grad_()
    (oracle.image(weights) * oracle.group_norm(params, image, 4)).sum().backward()
    want = oracle.numpy_image(image.grad)
    np.testing.assert_allclose(jax.grad(loss)(IMAGE), want, atol=1e-5)


def test_group_norm_keeps_precision_far_from_zero(random_params, oracle):
    far = IMAGE + 1000.0
    module = GroupNorm(groups=4)
    params = random_params(module, far)
    want = oracle.numpy_image(oracle.group_norm(params, oracle.image(far), 4))
    np.testing.assert_allclose(module.apply({"params": params}, far), want, atol=1e-3)


def test_group_norm_names_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="12 channels .* groups=5"):
        GroupNorm(groups=5).init(jax.random.key(0), IMAGE)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_is_torch_layer_norm(random_params, oracle, affine):
    module = LayerNorm(affine=affine)
    params = random_params(module, IMAGE) if affine else {}
    want = oracle.layer_norm(params if affine else None, oracle.tensor(IMAGE))
    np.testing.assert_allclose(module.apply({"params": params}, IMAGE), want, atol=1e-5)


def test_statistics_of_bfloat16_input_are_float32(random_params):
    x = jnp.asarray(IMAGE + 100.0, jnp.bfloat16)
    for module in (GroupNorm(groups=4, dtype=jnp.bfloat16), LayerNorm(dtype=jnp.bfloat16)):
        params = random_params(module, x)
        got = module.apply({"params": params}, x)
        assert got.dtype == jnp.bfloat16
        exact = module.clone(dtype=jnp.float32).apply({"params": params}, x.astype(jnp.float32))
        np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=1e-3)


def test_sinusoid_is_its_definition():
    t = np.array([0.0, 1.0, 17.5, 999.0, 1000.0], np.float32)
    want = np.empty((5, 64))
    for row, value in enumerate(t.astype(np.float64)):
        for i in range(32):
            angle = value * np.exp(-np.log(10000.0) * i / 32)
            want[row, i], want[row, 32 + i] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(sinusoidal_embedding(t, 64), want, atol=2e-4)


def test_sinusoid_reads_bfloat16_as_given_and_returns_float32():
    assert sinusoidal_embedding(jnp.ones(2, jnp.bfloat16), 8).dtype == jnp.float32


def test_resampling_by_two_is_torch_s(oracle):
    for ours, direction in ((upsample_nearest, "up"), (downsample_mean, "down")):
        want = oracle.numpy_image(oracle.resample(oracle.image(IMAGE), direction))
        np.testing.assert_allclose(ours(jnp.asarray(IMAGE)), want, atol=1e-5)


@pytest.mark.parametrize("size", [(24, 32), (9, 8), (3, 4), (2, 2)])
def test_bilinear_resize_is_torch_s(oracle, size):
    want = oracle.functional.interpolate(
        oracle.image(IMAGE), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    np.testing.assert_allclose(
        resize_bilinear(jnp.asarray(IMAGE), *size), oracle.numpy_image(want), atol=2e-5
    )


def test_bilinear_resize_computes_in_float32():
    x = jnp.asarray(IMAGE, jnp.bfloat16)
    got = resize_bilinear(x, 24, 32)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, resize_bilinear(x.astype(jnp.float32), 24, 32), atol=1e-6)


def test_a_parameter_is_made_once_and_one_of_another_shape_is_refused():
    made = []

    def init(key, shape):
        made.append(shape)
        return jnp.ones(shape)

    module = Dense(3, ("embed", "mlp"), kernel_init=init)
    params = module.init(jax.random.key(0), jnp.ones((2, 4)))
    assert params["params"]["kernel"].names == ("embed", "mlp")
    np.testing.assert_array_equal(module.apply(params, jnp.ones((2, 4))), np.full((2, 3), 4.0))
    assert made == [(4, 3)]
    with pytest.raises(ScopeParamShapeError, match=r'"kernel" in .*\(5, 3\).*\(4, 3\)'):
        module.apply(params, jnp.ones((2, 5)))

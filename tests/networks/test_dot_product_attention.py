"""Fused attention against plain attention and JAX's own; who gets which implementation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contextdiff_jax.networks import attention
from contextdiff_jax.networks import dot_product_attention as dpa
from contextdiff_jax.networks.adapter import Adapter
from contextdiff_jax.networks.config import AdapterConfig, EfficientUNetConfig, UNetConfig
from contextdiff_jax.networks.efficient_unet import EfficientUNet
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh, on_mesh
from contextdiff_jax.parallel.sharding import replicated

FUSED = {
    # The preparation for cuDNN with JAX's plain attention behind it; the kernel itself, emulated.
    "cudnn": functools.partial(dpa.cudnn_attention, backend="xla"),
    "flash": functools.partial(dpa.flash_attention, interpret=True),
}


def inputs(queries, keys, batch=3, heads=2, width=8, masked=True, dtype=np.float32):
    """Query, key, value and a mask with gaps, whose last row has no key at all."""
    rng = np.random.default_rng(queries)
    query, key, value = (
        jnp.asarray(rng.normal(size=(batch, length, heads, width)), dtype)
        for length in (queries, keys, keys)
    )
    mask = rng.random((batch, keys)) < 0.6
    mask[0], mask[-1] = True, False
    return query, key, value, jnp.asarray(mask) if masked else None


def value_and_gradients(function, query, key, value, mask):
    def weighted(query, key, value):
        attended = function(query, key, value, mask)
        return jnp.sum(attended * jnp.cos(jnp.arange(attended.size).reshape(attended.shape)))

    attended = function(query, key, value, mask)
    return attended, *jax.jit(jax.grad(weighted, argnums=(0, 1, 2)))(query, key, value)


def plain(query, key, value, mask):
    return dpa.attend(query, key, value, mask, "xla")


def test_logits_are_float32_whatever_is_computed_in():
    """Large ones, as of Stable Diffusion 2.1, which bfloat16 would round to 212 and 213."""
    query = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    key = jnp.array([[256, 44], [256, 45]], jnp.bfloat16).reshape(1, 2, 1, 2)
    value = jnp.array([0, 1], jnp.bfloat16).reshape(1, 2, 1, 1) * jnp.ones(2, jnp.bfloat16)
    share = 1 / (1 + np.exp(-1 / np.sqrt(2)))  # 0.670; of rounded logits 0.731
    attended = np.asarray(plain(query, key, value, None), np.float32)
    np.testing.assert_allclose(attended, share, atol=4e-3)
    weights = dpa.attention_weights(query, key, None)
    np.testing.assert_allclose(weights[0, 0, 0], [1 - share, share], atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_jax_s(masked):
    query, key, value, mask = inputs(5, 12, masked=masked)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")

    def theirs(query, key, value, mask):
        attended = attend(query, key, value, mask=None if mask is None else mask[:, None, None])
        # A row without keys is theirs to define as they like.
        return attended if mask is None else attended.at[-1].set(0.0)

    ours = value_and_gradients(plain, query, key, value, mask)
    for got, want in zip(ours, value_and_gradients(theirs, query, key, value, mask), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("queries", "keys"), [(5, 12), (130, 700)])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_is_plain_attention(name, queries, keys, masked):
    arguments = inputs(queries, keys, masked=masked)
    want = value_and_gradients(plain, *arguments)
    for got, expected in zip(value_and_gradients(FUSED[name], *arguments), want, strict=True):
        assert np.all(np.isfinite(got))
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_only_keys_that_may_be_padding_are_put_in_order():
    query, key, value, mask = inputs(5, 12)
    mask = mask.at[:, :4].set(True)
    got = value_and_gradients(
        functools.partial(FUSED["cudnn"], real_keys=4), query, key, value, mask
    )
    for found, expected in zip(
        got, value_and_gradients(plain, query, key, value, mask), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def loss(key):
        return FUSED["cudnn"](query, key, value, mask, real_keys=4).sum()

    text = jax.jit(jax.grad(loss)).lower(key).as_text()
    scatters = re.findall(
        r'"stablehlo.scatter".*?unique_indices = (\w+).*?tensor<3x8x2x8xf32>', text, re.S
    )
    assert scatters == ["true"], "others would add atomically"


def test_the_kernel_takes_bfloat16():
    arguments = inputs(5, 12, width=64, dtype=jnp.bfloat16)
    got, want = FUSED["flash"](*arguments), plain(*arguments)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), atol=0.03)


@pytest.mark.parametrize(
    ("batch", "heads", "split"), [(4, 2, (1, 5, 1, 8)), (4, 3, (1, 5, 3, 8)), (1, 2, (1, 5, 1, 8))]
)
def test_on_a_mesh_every_device_does_its_examples_and_heads(batch, heads, split):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    arguments = inputs(5, 12, batch=batch, heads=heads)
    placed = jax.device_put(arguments, replicated(mesh))
    attended = jax.jit(on_mesh(FUSED["flash"], mesh))(*placed)
    np.testing.assert_allclose(attended, plain(*arguments), atol=1e-5)
    assert attended.sharding.shard_shape(attended.shape) == split


class Device:
    platform, device_kind, compute_capability = "gpu", "NVIDIA H100 80GB HBM3", "9.0"


class OldDevice(Device):
    compute_capability = "7.5"


class OtherDevice(Device):
    device_kind = "AMD Instinct MI300X"


@pytest.mark.parametrize(
    ("platform", "device", "queries", "width", "dtype", "expected"),
    [
        ("cpu", None, 1024, 64, jnp.bfloat16, "xla"),
        ("gpu", Device, 1024, 64, jnp.bfloat16, "cudnn"),
        ("gpu", Device, 64, 64, jnp.bfloat16, "xla"),
        ("gpu", Device, 1024, 64, jnp.float32, "xla"),
        ("gpu", Device, 1024, 60, jnp.bfloat16, "xla"),
        ("gpu", OldDevice, 1024, 64, jnp.bfloat16, "xla"),
        ("gpu", OtherDevice, 1024, 64, jnp.bfloat16, "xla"),
        ("tpu", None, 1024, 64, jnp.bfloat16, "flash"),
        ("tpu", None, 64, 64, jnp.bfloat16, "xla"),
    ],
)
def test_automatic_choice(monkeypatch, platform, device, queries, width, dtype, expected):
    monkeypatch.setattr(dpa, "platform", lambda: platform)
    monkeypatch.setattr(dpa.jax, "device_count", lambda: 1)
    if device is not None:
        monkeypatch.setattr(dpa.jax, "local_devices", lambda: [device])
    taken = []
    for name in ("cudnn", "flash"):
        monkeypatch.setattr(
            dpa, f"{name}_attention", lambda q, *_, name=name: taken.append(name) or q
        )
    query = jax.ShapeDtypeStruct((1, queries, 2, width), dtype)
    jax.eval_shape(lambda q: dpa.attend(q, q, q), query)  # a new function: no trace is reused
    assert (taken or ["xla"]) == [expected]


def test_the_kernel_is_not_chosen_where_it_could_not_be_split(monkeypatch):
    monkeypatch.setattr(dpa, "platform", lambda: "tpu")
    monkeypatch.setattr(dpa, "flash_attention", lambda query, *_: query[:, :1])
    query = jax.ShapeDtypeStruct((8, 1024, 2, 64), jnp.bfloat16)
    assert jax.device_count() == 8
    assert jax.eval_shape(dpa.attend, query, query, query).shape == query.shape
    mesh = make_mesh(MeshConfig())
    chosen = jax.eval_shape(on_mesh(dpa.attend, mesh), query, query, query)
    assert chosen.shape == (8, 1, 2, 64)


def test_the_platform_is_that_of_the_ambient_mesh():
    mesh = make_mesh(MeshConfig())
    assert on_mesh(dpa.platform, mesh)() == "cpu"
    elsewhere = jax.sharding.AbstractMesh(
        (8,), ("data",), abstract_device=jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert dpa.platform() == "tpu"


@pytest.mark.parametrize(
    ("name", "platform", "device", "dtype", "sentence"),
    [
        (
            "flash",
            "cpu",
            None,
            "bfloat16",
            "net.key = 'flash': must be 'auto' or 'xla' on cpu, .* TPU",
        ),
        ("flash", "gpu", Device, "bfloat16", "net.key = 'flash': must be 'auto' or 'xla' on gpu, "),
        ("cudnn", "cpu", None, "bfloat16", "net.key = 'cudnn': must be .* on this cpu, .* NVIDIA"),
        ("cudnn", "gpu", OldDevice, "bfloat16", "'cudnn': must be .* on this gpu, .* 8.0 or more"),
        ("cudnn", "gpu", Device, "float32", "'cudnn': must be .* with dtype float32, .* bfloat16"),
    ],
)
def test_what_the_machine_does_not_have_is_refused(
    monkeypatch, name, platform, device, dtype, sentence
):
    if device is not None:
        monkeypatch.setattr(dpa.jax, "local_devices", lambda: [device])
    with pytest.raises(ValueError, match=sentence):
        dpa.check_implementation(name, platform, dtype, "net.key")
    for allowed in ("auto", "xla"):
        dpa.check_implementation(allowed, platform, dtype)


def test_attend_refuses_too():
    with pytest.raises(
        ValueError, match="^attention_implementation = 'flash': must be 'auto' or 'xla'"
    ):
        dpa.attend(*inputs(5, 12), "flash")


@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_gets_lengths_and_no_bias(monkeypatch, masked):
    """Lowered for CUDA without a GPU: jax's own checks pass, and the call is the padded one."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    query, key, value, mask = inputs(255, 333, masked=masked, width=64, dtype=jnp.bfloat16)

    def loss(query, key, value):
        return dpa.cudnn_attention(query, key, value, mask).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(query, key, value)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "custom_call" in line and "cudnn$" in line]
    assert len(calls) == 2, "one call forward, one backward"
    for call in calls:
        assert "PADDING" in call and "Bias" not in call


@pytest.mark.slow
def test_a_scanned_rematerialized_network_trains_with_the_kernel_on_a_mesh(
    monkeypatch, random_params
):
    module = UNet(
        UNetConfig(
            width=16,
            multipliers=(1,),
            num_blocks=2,
            attention_levels=(0,),
            head_dim=8,
            groups=4,
            text_dim=16,
            text_width=None,
            remat="blocks",
        )
    )
    rng = np.random.default_rng(0)
    x, text = rng.normal(size=(4, 4, 4, 3)), rng.normal(size=(4, 5, 16))
    mask = np.arange(5) < np.array([[5], [1], [3], [5]])
    given = tuple(np.asarray(a, np.float32) for a in (x, np.arange(4.0), text)) + (mask,)
    params = random_params(module, *given)

    def loss(params, *given):
        return jnp.mean(jnp.square(module.apply({"params": params}, *given)))

    want = jax.jit(jax.grad(loss))(params, *given)
    kernel = FUSED["flash"]
    monkeypatch.setattr(attention, "attend", lambda q, k, v, mask, *_, **__: kernel(q, k, v, mask))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put((params, *given), replicated(mesh))
    got = jax.jit(on_mesh(jax.grad(lambda *a: loss(*a)), mesh))(*placed)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=jax.tree_util.keystr(path))


TEXT = {"text_dim": 16, "attention_implementation": "flash"}
NETWORKS = {
    # Two blocks down, three up, one in the middle, one pooling; a scanned run is traced once.
    "unet": (
        UNet(
            UNetConfig(
                width=16,
                multipliers=(1, 1),
                num_blocks=2,
                attention_levels=(1,),
                head_dim=8,
                groups=4,
                text_width=None,
                scan_blocks=False,
                **TEXT,
            )
        ),
        7,
    ),
    "scanned unet": (
        UNet(
            UNetConfig(
                width=16,
                multipliers=(1, 1),
                num_blocks=2,
                attention_levels=(1,),
                head_dim=8,
                groups=4,
                text_width=None,
                remat="blocks",
                **TEXT,
            )
        ),
        None,
    ),
    "efficient unet": (
        EfficientUNet(
            EfficientUNetConfig(
                channels=(8, 16),
                num_blocks=(1, 1),
                strides=(2, 2),
                attention_levels=(1,),
                heads=2,
                groups=4,
                low_res=False,
                scan_blocks=False,
                **TEXT,
            )
        ),
        3,
    ),
    "adapter": (
        Adapter(AdapterConfig(width=16, num_blocks=2, heads=2, image_dim=16, **TEXT)),
        4,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_config_reaches_every_attention(monkeypatch, name):
    asked = []

    def record(query, key, value, mask=None, implementation="auto", real_keys=0):
        asked.append(implementation)
        return plain(query, key, value, mask)

    monkeypatch.setattr(attention, "attend", record)
    module, count = NETWORKS[name]
    x, t, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros(1), jnp.zeros((1, 5, 16))
    given = (x, t, tokens, tokens) if name == "adapter" else (x, t, tokens)
    jax.eval_shape(lambda: module.init(jax.random.key(0), *given))
    assert set(asked) == {"flash"}
    assert count is None or len(asked) == count

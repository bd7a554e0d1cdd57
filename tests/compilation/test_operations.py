"""Counts from HLO text and from jaxprs against XLA's own analysis and closed forms."""

import functools
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from contextdiff_jax.compilation import hlo, operations
from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.unet import UNet

F32 = jnp.float32


def shape(*dims, dtype=F32):
    return jax.ShapeDtypeStruct(dims, dtype)


def module_of(f, *args):
    compiled = jax.jit(f).lower(*args).compile()
    return hlo.parse(compiled.as_text()), compiled


def convolution(x, w, **kwargs):
    settings = {"window_strides": (1, 1), "padding": "SAME"} | kwargs
    return jax.lax.conv_general_dilated(
        x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings
    )


CONVOLUTIONS = {
    "same": ({}, (2, 9, 9, 4), (3, 3, 4, 6)),
    "strided": ({"window_strides": (2, 2)}, (2, 9, 9, 4), (3, 3, 4, 6)),
    "one by one": ({}, (2, 5, 7, 4), (1, 1, 4, 6)),
    "grouped": ({"feature_group_count": 2}, (2, 6, 6, 4), (3, 3, 2, 6)),
    "dilated kernel": ({"rhs_dilation": (2, 2)}, (2, 9, 9, 4), (3, 3, 4, 6)),
    "dilated input": (
        {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))},
        (2, 5, 5, 4),
        (3, 3, 4, 6),
    ),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_count_like_xla(case):
    kwargs, x, w = CONVOLUTIONS[case]
    f = functools.partial(convolution, **kwargs)
    args = shape(*x), shape(*w)
    expected = jax.jit(f).lower(*args).cost_analysis()["flops"]  # before any rewriting
    assert model_flops(f, *args) == expected
    assert operations.flops(module_of(f, *args)[0]) == expected


def test_gradients_of_convolutions_count_like_xla():
    def loss(x, w):
        return convolution(x, w, window_strides=(2, 2))

    def gradients(x, w, cotangent):
        value, pull_back = jax.vjp(loss, x, w)
        return value, pull_back(cotangent)

    args = shape(2, 8, 8, 4), shape(3, 3, 4, 6), shape(2, 4, 4, 6)
    expected = jax.jit(gradients).lower(*args).cost_analysis()["flops"]
    assert model_flops(gradients, *args) == pytest.approx(expected, rel=1e-6)
    assert operations.flops(module_of(gradients, *args)[0]) == pytest.approx(expected, rel=1e-6)


LIBRARIES = """HloModule m

ENTRY main (x: f32[2,8,8,4], w: f32[3,3,4,6], g: f32[2,4,4,6]) -> f32[] {{
  %x = f32[2,8,8,4] parameter(0)
  %w = f32[3,3,4,6] parameter(1)
  %g = f32[2,4,4,6] parameter(2)
  %q = bf16[2,64,4,8] constant({{...}})
  %k = bf16[2,32,4,8] constant({{...}})
  %c = ({shape}, u8[1024]) custom-call({operands}), {attributes}custom_call_target="{target}"{more}
  ROOT %r = f32[] constant(0)
}}
"""
FORWARD = "window={size=3x3 pad=0_1x0_1 stride=2x2}, dim_labels=b01f_01io->b01f, "
CONTRACTED = (
    """, backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1","2"]}}"""
)


def in_library(target, shape, operands, attributes=FORWARD, more=""):
    return hlo.parse(
        LIBRARIES.format(
            target=target, shape=shape, operands=operands, attributes=attributes, more=more
        )
    )


@pytest.mark.parametrize(
    ("target", "shape_of", "operands", "output"),
    [
        ("__cudnn$convForward", "f32[2,4,4,6]", "%x, %w", "value"),
        ("__cudnn$convBiasActivationForward", "f32[2,4,4,6]", "%x, %w, %g", "value"),
        ("__cudnn$convBackwardInput", "f32[2,8,8,4]", "%g, %w", "of input"),
        ("__cudnn$convBackwardFilter", "f32[3,3,4,6]", "%x, %g", "of kernel"),
    ],
)
def test_convolutions_of_cudnn_count_like_xla(target, shape_of, operands, output):
    def run(x, w, cotangent):
        f = functools.partial(convolution, window_strides=(2, 2))
        value, pull_back = jax.vjp(f, x, w)
        if output == "value":
            return value
        return pull_back(cotangent)[0 if output == "of input" else 1]

    args = shape(2, 8, 8, 4), shape(3, 3, 4, 6), shape(2, 4, 4, 6)
    expected = jax.jit(run).lower(*args).compile().cost_analysis()["flops"]
    module = in_library(target, shape_of, operands)
    assert operations.flops(module) == pytest.approx(expected, rel=0.01)
    assert operations.custom_calls(module) == {}


def test_products_and_attention_of_a_gpu_s_libraries():
    module = in_library("__cublas$lt$matmul", "f32[2,8]", "%x, %w", "", CONTRACTED)
    assert operations.flops(module) == 2 * (2 * 8) * (8 * 8)
    # Reads 2,048 and 864 bytes, writes 64; the second result is room to work in.
    assert operations.hbm_bytes(module) == 2048 + 864 + 64
    text = LIBRARIES.replace("({shape}, u8[1024])", "{shape}")  # a call without such room
    parts = {"target": "__cublas$gemm", "attributes": "", "more": CONTRACTED}
    alone = hlo.parse(text.format(shape="f32[2,8]", operands="%x, %w", **parts))
    assert operations.hbm_bytes(alone) == 2048 + 864 + 64
    one = 2 * 2 * 64 * 4 * 8 * 32  # every query and head with every key
    for target, products in (("__cudnn$fmhaSoftmax", 2), ("__cudnn$fmhaSoftmaxBackward", 5)):
        module = in_library(target, "bf16[2,64,4,8]", "%q, %k", "")
        assert operations.flops(module) == products * one
    unknown = in_library("__cudnn$norm", "f32[2,8,8,4]", "%x", "")
    assert operations.flops(unknown) == 0
    assert operations.custom_calls(unknown) == {"__cudnn$norm": 1}


def test_products_in_nested_loops_count_as_often_as_they_run():
    def chain(weights, x):
        def outer(carry, w):
            return jax.lax.fori_loop(0, 3, lambda _, c: jnp.tanh(c @ w), carry), None

        return jax.lax.scan(outer, x, weights)[0]

    args = shape(7, 16, 16), shape(5, 16)
    expected = 7 * 3 * 2 * 5 * 16 * 16
    module, _ = module_of(chain, *args)
    assert not module.unknown_loops()
    assert operations.flops(module) == model_flops(chain, *args) == expected


def test_scanned_and_rematerialized_networks_count_as_plain_ones():
    def count(**changes):
        config = UNetConfig(
            width=16,
            multipliers=(1, 1),
            num_blocks=3,
            attention_levels=(1,),
            head_dim=8,
            groups=4,
            text_dim=16,
            text_width=None,
            **changes,
        )
        module = UNet(config)
        inputs = jnp.zeros((1, 8, 8, 3)), jnp.ones(1), jnp.zeros((1, 3, 16))
        params = jax.eval_shape(lambda: nn.unbox(module.init(jax.random.key(0), *inputs)))
        return model_flops(module.apply, params, *inputs)

    plain = count(scan_blocks=False)
    assert plain > 0
    assert count(scan_blocks=True, remat="blocks") == plain


def test_recomputation_is_in_the_compiled_count_only():
    def loss(checkpointed, weights, x):
        def block(x, w):
            return jnp.tanh(x @ w), None

        return jnp.sum(
            jax.lax.scan(jax.checkpoint(block) if checkpointed else block, x, weights)[0]
        )

    length, args = 6, (shape(6, 16, 16), shape(64, 16))
    one = 2 * 64 * 16 * 16
    assert model_flops(jax.grad(functools.partial(loss, False)), *args) == length * 3 * one
    module, _ = module_of(jax.grad(functools.partial(loss, True)), *args)
    assert operations.flops(module) == length * 4 * one


def test_collectives_count_what_is_sent():
    mesh = Mesh(jax.devices()[:8], ("x",))
    split, whole = PartitionSpec("x"), PartitionSpec()

    @jax.shard_map(mesh=mesh, in_specs=(split,) * 3, out_specs=whole, check_vma=False)
    def mixed(a, b, c):
        gathered = jax.lax.all_gather(a, "x", tiled=True)
        summed = jax.lax.psum(b, "x")
        part = jax.lax.psum_scatter(jnp.tile(c, (8, 1)), "x", tiled=True)
        return jnp.sum(gathered) + jnp.sum(summed * summed) + jnp.sum(part * part)

    args = shape(64, 128), shape(64, 32), shape(64, 16)  # a device holds an eighth
    found = operations.collectives(module_of(mixed, *args)[0])
    assert found["all-gather"].bytes == 8 * 128 * 4 * 7
    assert found["all-reduce"].bytes == pytest.approx(2 * 8 * 32 * 4 * 7 / 8)
    assert found["reduce-scatter"].bytes == pytest.approx(64 * 16 * 4 * 7 / 8)


KERNELS = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from contextdiff_jax.compilation import hlo, operations
from contextdiff_jax.networks.dot_product_attention import flash_attention
from contextdiff_jax.parallel import topologies
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh, on_mesh

mesh = make_mesh(MeshConfig(2, 2, 1), topologies.devices("v5e:2x2"))
def shape(*dims, dtype=jnp.bfloat16):
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

def gradients(query, key, value, mask):
    attend = lambda *inputs: jnp.sum(flash_attention(*inputs, mask).astype(jnp.float32) ** 2)
    return jax.grad(attend, (0, 1, 2))(query, key, value)

key = shape(8, 333, 2, 64)
arguments = shape(8, 250, 2, 64), key, key, shape(8, 333, dtype=bool)
with jax.default_device(jax.local_devices(backend="cpu")[0]):
    compiled = jax.jit(on_mesh(gradients, mesh)).lower(*arguments).compile()
module = hlo.parse(compiled.as_text())
# 2 products forward; in the kernels of the gradients 3 and 4. Lengths are padded to whole lanes.
product = 2 * (8 // 4) * 2 * 256 * 384 * 64
assert operations.flops(module) == 9 * product, (operations.flops(module) / product)
assert not operations.custom_calls(module)
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_attention_kernels_count_their_products():
    subprocess.run([sys.executable, "-c", KERNELS], check=True)


GROUPS = {
    "{{0,1,2,3},{4,5,6,7}}": 4,
    "[2,4]<=[8]": 4,
    "[4,2]<=[2,4]T(1,0)": 2,
    "mesh['axis_0'=8,'axis_1'=1,'axis_2'=32], device_ids=([32,8]T(1,0)) {'axis_0'}": 8,
    "mesh['axis_0'=8,'axis_1'=4,'axis_2'=1] {'axis_0','axis_1'}": 32,
    "mesh['a'=8,'b'=4] {'a':(2)4,'b'}": 16,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_every_form_of_groups_is_read(groups):
    text = f"""HloModule m

ENTRY main (x: f32[16]) -> f32[128] {{
  %x = f32[16]{{0}} parameter(0)
  ROOT %g = f32[128]{{0}} all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""
    found = operations.collectives(hlo.parse(text))["all-gather"]
    assert found == operations.Collective(1, 16 * 4 * (GROUPS[groups] - 1))


def test_groups_of_another_form_are_refused():
    text = """ENTRY main () -> f32[2] {
  %x = f32[2] parameter(0)
  ROOT %g = f32[2] all-reduce(%x), replica_groups=<new>
}
"""
    with pytest.raises(ValueError, match="replica groups of an unknown form: replica_groups=<new>"):
        operations.collectives(hlo.parse(text))


def test_traffic_is_what_is_read_and_written():
    x = shape(256, 256)
    module, _ = module_of(lambda x: jnp.tanh(x) * 2 + 1, x)
    assert operations.hbm_bytes(module) == 2 * 256 * 256 * 4


def test_a_loop_over_slices_reads_each_once():
    def chain(weights, x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, weights)[0]

    weights, x = shape(32, 64, 64), shape(8, 64)
    module, _ = module_of(chain, weights, x)
    whole = 32 * 64 * 64 * 4
    assert whole <= operations.hbm_bytes(module) < 4 * whole  # not 32 times


FUSION = """HloModule m

fused (operands: f32[]) -> f32[1,64] {{
{parameters}
  %zero = s32[] constant(0)
  %slice = f32[1,64] dynamic-slice(%all, %at, %zero), dynamic_slice_sizes={{1,64}}
  ROOT %sum = f32[1,64] add(%slice, %row)
}}

ENTRY main (weights: f32[512,64]) -> f32[1,64] {{
  %weights = f32[512,64] parameter(0)
  %number = s32[] parameter(1)
  %x = f32[1,64] parameter(2)
  ROOT %f = f32[1,64] fusion(%weights, %number, %x), kind=kLoop, calls=fused
}}
"""


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_operands_of_a_fusion_are_told_by_number_not_by_order(order):
    lines = [
        "  %all = f32[512,64] parameter(0)",
        "  %at = s32[] parameter(1)",
        "  %row = f32[1,64] parameter(2)",
    ]
    text = FUSION.format(parameters="\n".join(lines[number] for number in order))
    # One row of the weights is read, the number, the row x; one row is written.
    assert operations.hbm_bytes(hlo.parse(text)) == 3 * 64 * 4 + 4


START = """HloModule m

ENTRY main (x: f32[8,64]) -> f32[8,64] {{
  %x = f32[8,64] parameter(0)
  ROOT %r = {shape} {opcode}(%x), replica_groups={{{{0,1}}}}
}}
"""


@pytest.mark.parametrize(
    ("shape", "opcode", "values"),
    [
        ("f32[8,64]", "all-reduce", 2 * 8 * 64),
        ("f32[8,64]", "all-reduce-start", 2 * 8 * 64),
        ("f32[16,64]", "all-gather", 3 * 8 * 64),
        ("(f32[8,64], f32[16,64])", "all-gather-start", 3 * 8 * 64),
        ("(f32[8,64]{1,0:S(1)}, f32[8,64], u32[])", "copy-start", 8 * 64 + 1),
    ],
)
def test_collectives_read_their_operands_and_write_their_result(shape, opcode, values):
    module = hlo.parse(START.format(shape=shape, opcode=opcode))
    assert operations.hbm_bytes(module) == 4 * values


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")

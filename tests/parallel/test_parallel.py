"""Meshes, the rule table and the audit."""

import types

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from contextdiff_jax.networks import axes
from contextdiff_jax.parallel import audit, sharding
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.training.loop import check_batch_size


def test_the_free_axis_takes_what_is_left():
    assert dict(make_mesh(MeshConfig(-1, 2, 2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh(MeshConfig(2, -1, 1)).shape) == {"data": 2, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (MeshConfig(3, 1, 1), "does not fill the 8 devices: mesh.data = 8 would fit"),
        (MeshConfig(-1, 3, 1), "mesh.fsdp = 3: 1, 2, 4 or 8 would fit"),
        (MeshConfig(-1, 4, 8), "mesh.fsdp = 4: 1 would fit"),
        (MeshConfig(-1, 3, 2), "mesh.fsdp = 3: 1, 2 or 4 would fit"),
        (MeshConfig(-1, 3, 5), "mesh.fsdp x mesh.tensor = 15: 1, 2, 4 or 8 would fit"),
        (MeshConfig(1, 2, 3), ": mesh.tensor = 4 would fit$"),
        (MeshConfig(-1, -1, 1), "only one axis may be -1"),
        (MeshConfig(0, 1, 1), "mesh.data = 0: must be a positive number"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_mesh(config)


def test_only_data_goes_across_slices():
    devices = [types.SimpleNamespace(slice_index=number // 2) for number in range(4)]
    with pytest.raises(ValueError, match="mesh.data = 1: must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, 4, 1), devices)


def test_every_axis_name_has_a_rule():
    assert {name for name, _ in sharding.RULES} == set(axes.AXES)


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    boxed = nn.LogicallyPartitioned(jnp.zeros((3, 6)), ("conv_in", "conv_out"))
    assert sharding.shardings_of({"k": boxed}, mesh)["k"].spec == P(None, "tensor")


def test_the_audit_counts_bytes_and_refuses_large_copies():
    mesh = make_mesh(MeshConfig(2, 4, 1))
    leaf = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
    split = sharding.shardings_of({"w": nn.LogicallyPartitioned(leaf, ("embed", "mlp"))}, mesh)
    lines = audit.audit({"params": ({"w": leaf}, split)})
    assert "16.0 MiB per device of 64.0" in lines[0]
    with pytest.raises(ValueError, match=r"1 large arrays would be whole.*params\['w'\]"):
        audit.audit({"params": ({"w": leaf}, {"w": sharding.replicated(mesh)})})


def test_a_batch_that_does_not_divide_says_what_would():
    with pytest.raises(
        ValueError, match="batch_size = 30: must be divisible by 8 devices.*e.g. 24"
    ):
        check_batch_size(30, 1, make_mesh(MeshConfig()))

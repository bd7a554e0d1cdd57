"""Meshes, the rule table and the audit."""

import types

import jax
import jax.numpy as jnp
import psutil
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
        (MeshConfig(3, 1, 1), r"does not fill the 8 devices: mesh.data = 8 would fit$"),
        (MeshConfig(-1, 16, 1), r"8 devices: mesh.fsdp = 16: 1, 2, 4 or 8 would fit$"),
        (MeshConfig(2, 1, -16), r"mesh.tensor = -16: must be a positive number"),
        (MeshConfig(3, -1, 1), r"mesh.data = 3: 1, 2, 4 or 8 would fit$"),
        (
            MeshConfig(-1, 4, 8),
            r"mesh.fsdp = 4: 1 would fit, or mesh.tensor = 8: 1 or 2 would fit$",
        ),
        (MeshConfig(-1, 3, 2), r"devices: mesh.fsdp = 3: 1, 2 or 4 would fit$"),
        (MeshConfig(-1, 3, 5), r"mesh.fsdp x mesh.tensor = 15: 1, 2, 4 or 8 would fit$"),
        (MeshConfig(1, 2, 3), r"devices: mesh.tensor = 4 would fit$"),
        (MeshConfig(1, 2, 2), r"mesh.data = 2 would fit, or mesh.fsdp = 4 would fit, or "),
        (MeshConfig(3, 3, 1), r"mesh.data x mesh.fsdp x mesh.tensor = 9: 8 would fit, e.g. "),
        (MeshConfig(-1, -1, 1), "only one axis may be -1"),
        (MeshConfig(0, 1, 1), "mesh.data = 0: must be a positive number"),
    ],
)
def test_a_mesh_that_does_not_fit_says_what_would(config, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_mesh(config)


@pytest.mark.parametrize("config", [MeshConfig(1, 4, 1), MeshConfig(-1, 2, 2)])
def test_only_data_goes_across_slices(config):
    devices = [types.SimpleNamespace(slice_index=number // 2) for number in range(4)]
    with pytest.raises(ValueError, match="mesh.data = 1: must be a multiple of the 2 slices") as no:
        make_mesh(config, devices)
    assert str(no.value).endswith("mesh.fsdp x mesh.tensor = 4: 1 or 2 would fit")


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


@pytest.fixture
def with_memory(monkeypatch):
    """Returns give(bytes): every device says that it has so much memory."""

    def give(count):
        monkeypatch.setattr(jax.Device, "memory_stats", lambda self: {"bytes_limit": count})

    return give


def of_mlp(mesh, shape=(1024, 1024)):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    boxed = {"w": nn.LogicallyPartitioned(leaf, ("embed", "mlp"))}
    return {"w": leaf}, sharding.shardings_of(boxed, mesh)


def test_a_state_whole_on_every_device_is_refused_where_it_cannot_fit(with_memory):
    mesh = make_mesh(MeshConfig())  # 8 replicas
    groups = {"params": of_mlp(mesh), "ema": of_mlp(mesh)}  # 8 MiB
    with_memory(9 * 2**20)
    assert "4.0 MiB per device of 4.0" in audit.audit(groups)[0]  # a copy of what fits is fine
    with_memory(8 * 2**20)
    with pytest.raises(
        ValueError,
        match=r"each of 8 devices would keep 0.00781 GiB \(params 0.00391, ema 0.00391\), 0.00781 "
        "of it whole on every device: more than 0.9 of the 0.00781 GiB it has; mesh.fsdp = 1: at "
        "least 2 is needed to split it$",
    ):
        audit.audit(groups)
    with pytest.raises(ValueError, match="it has; run it elsewhere$"):
        audit.audit(groups, "run it elsewhere")


def test_a_state_split_too_little_is_refused(with_memory):
    mesh = make_mesh(MeshConfig(-1, 2, 2))
    groups = {"params": of_mlp(mesh)}  # 1 MiB on each
    with_memory(2**19)
    with pytest.raises(ValueError, match=r", 0 of it whole .* mesh.fsdp = 2: at least 5 is needed"):
        audit.audit(groups)
    with_memory(2**20)
    with pytest.raises(ValueError, match=r"mesh.fsdp = 2: at least 4 is needed to split it$"):
        audit.audit(groups)


def test_devices_that_do_not_say_count_as_the_largest_chip(monkeypatch):
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    monkeypatch.setattr(audit, "_host_memory", lambda: None)
    assert jax.devices()[0].memory_stats() is None
    audit.audit({"params": of_mlp(mesh, (2**10, 20 * 2**20))})  # 80 GiB
    with pytest.raises(ValueError, match=r"keep 88 GiB .*0.9 of the 95 GiB it has"):
        audit.audit({"params": of_mlp(mesh, (2**10, 22 * 2**20))})


def test_devices_of_a_cpu_share_the_machine_s_memory():
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    mib = psutil.virtual_memory().total / 2**20 / mesh.size
    audit.audit({"params": of_mlp(mesh, (2**18, int(0.89 * mib)))})
    with pytest.raises(ValueError, match=f"more than 0.9 of the {mib / 1024:.3g} GiB it has"):
        audit.audit({"params": of_mlp(mesh, (2**18, int(0.91 * mib)))})


def test_nothing_kept_is_nothing_to_refuse():
    assert audit.audit({"frozen": ({}, {})}) == ["frozen              0.0 MiB per device of 0.0"]


def test_a_batch_that_does_not_divide_says_what_would():
    with pytest.raises(
        ValueError, match="batch_size = 30: must be divisible by 8 devices.*e.g. 24"
    ):
        check_batch_size(30, 1, make_mesh(MeshConfig()))

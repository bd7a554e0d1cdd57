"""Names of topologies, and devices of slices that are not there."""

import importlib.util
import subprocess
import sys

import pytest

from contextdiff_jax.compilation import shapes
from contextdiff_jax.parallel import absent_gpus, topologies


@pytest.mark.parametrize(
    "name", ["v5e:16x16x2", "v9:4x4", "v5p:4x4", "cpu:0", "v5e", "cpu:2x2", "h100", "h100:2x2"]
)
def test_a_wrong_name_lists_what_is_known(name):
    with pytest.raises(ValueError, match=f"topology '{name}': must be one of v4, v5e.*v5e:16x16"):
        topologies.chip(name)


def test_examples_are_valid():
    assert [topologies.chip(name) is None for name in topologies.EXAMPLES] == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("topology", "slices", "sentence"),
    [
        ("h100:9", 1, "topology 'h100:9': must be at most 8 GPUs, those of a host"),
        ("h100:8", 2, "topology 'h100:8' with 2 slices: GPUs are of one host"),
        ("a100:1", 1, r"topology 'a100:1' needs NVIDIA's compiler: pip install \"jax\[cuda12\]\""),
    ],
)
def test_gpus_that_cannot_be_are_refused(topology, slices, sentence, monkeypatch):
    monkeypatch.setattr(absent_gpus, "installed", lambda: False)
    with pytest.raises(ValueError, match=sentence):
        topologies.devices(topology, slices)
    with pytest.raises(ValueError, match=f"{sentence}$"):  # without the shapes of TPUs
        shapes.devices(topology, slices)


def test_a_gpu_s_figures_are_its_description_s():
    for name, gpu in absent_gpus.GPUS.items():
        chip = topologies.chip(f"{name}:1")
        assert f"device_memory_size: {chip.hbm}\n" in absent_gpus._description(gpu)
        assert topologies.is_gpu(f"{name}:1") and 1e12 < chip.hbm_bandwidth < 1e13
    assert not topologies.is_gpu("v5e:2x2") and not topologies.is_gpu("cpu:8")


CODE = """
from contextdiff_jax.parallel import topologies
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(data=-1, fsdp=4), topologies.devices("v5e:4x4", slices=2))
slices = [{d.slice_index for d in row.flat} for row in mesh.devices.reshape(2, -1)]
assert dict(mesh.shape) == {"data": 8, "fsdp": 4, "tensor": 1}, mesh.shape
assert slices == [{0}, {1}], slices
assert make_mesh(MeshConfig(data=-1, fsdp=8), topologies.devices("v5e:16x16")).shape["data"] == 32
try:
    topologies.devices("v5e:3x5")
except ValueError as error:
    assert "'v5e:3x5' is not known to libtpu" in str(error), error
else:
    raise AssertionError("v5e:3x5 was accepted")
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_slices_of_libtpu_make_a_hybrid_mesh():
    subprocess.run([sys.executable, "-c", CODE], check=True)

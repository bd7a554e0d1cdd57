"""NVIDIA GPUs that are not there: devices to compile for, all of one host.

The compiler comes with JAX's CUDA plugin, pip install "jax[cuda12]", and needs no GPU. There is
none to try kernels on, so cuBLAS and cuDNN do all products; attention is cuDNN's, as on a GPU.
"""

import dataclasses
import importlib.util
import os

import jax

MOST = 8  # of a host
# For jax.stages.Lowered.compile: what is chosen by trying is left out.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's compiler must know of a GPU (its device description), and two of its rates.

    capability: CUDA's compute capability, the major number. cores: multiprocessors. lanes: float32
    units of one. shared, block_shared: bytes of shared memory of one, and of one block at most.
    l2, memory: bytes. bandwidth: bytes per second. flops: bfloat16 operations per second, of dense
    matrices; nvlink: bytes per second that it sends to others (NVIDIA's data sheets).
    """

    name: str
    capability: int
    cores: int
    lanes: int
    shared: int
    block_shared: int
    l2: int
    memory: int
    bandwidth: int
    clock_ghz: float
    flops: float
    nvlink: float


_HOPPER = Gpu(
    "NVIDIA H100 80GB HBM3",
    capability=9,
    cores=132,
    lanes=128,
    shared=233_472,
    block_shared=232_448,
    l2=52_428_800,
    memory=84_942_979_072,
    bandwidth=3_352_320_000_000,
    clock_ghz=1.98,
    flops=989e12,
    nvlink=450e9,
)
GPUS = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        lanes=64,
        shared=167_936,
        block_shared=166_912,
        l2=41_943_040,
        memory=85_100_068_864,
        bandwidth=2_039_040_000_000,
        clock_ghz=1.41,
        flops=312e12,
        nvlink=300e9,
    ),
    "h100": _HOPPER,
    "h200": dataclasses.replace(
        _HOPPER,
        name="NVIDIA H200 141GB HBM3e",
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
    ),
}


def devices(name: str, count: int) -> list[jax.Device]:
    """Returns `count` devices of a kind of GPUS; nothing can run on them.

    Call it before anything else uses JAX's devices. Raises ValueError for more than a host has, or
    without the plugin.
    """
    if count > MOST:
        raise ValueError(f"topology '{name}:{count}': must be at most {MOST} GPUs, those of a host")
    if not installed():
        raise ValueError(
            f"topology '{name}:{count}' needs NVIDIA's compiler: pip install \"jax[cuda12]\""
        )
    # The plugin asks the driver for its version, and is not registered without one.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda", target_config=_description(GPUS[name]), topology=f"1x1x{count}"
    )
    return list(found.devices)


def installed() -> bool:
    """Whether JAX's plugin for CUDA is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") for n in (12, 13))


def _description(gpu: Gpu) -> str:
    """Returns XLA's GpuTargetConfigProto as text."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.block_shared}
  shared_memory_per_core: {gpu.shared}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {gpu.bandwidth}
  device_memory_size: {gpu.memory}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock_ghz}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{gpu.name}"
"""

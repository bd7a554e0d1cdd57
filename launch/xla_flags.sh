# shellcheck shell=bash
# Compiler and runtime settings per platform, in one place. Sourced only: train.sh calls
# `xla_environment PLATFORM`, which prints NAME=VALUE, one per line. What you set yourself in
# LIBTPU_INIT_ARGS or XLA_FLAGS is appended, so it wins.
#
# Kept: flags that a current jaxlib or libtpu does not set by itself and that their authors
# recommend for overlapping communication with computation. None is measured on this model: time
# a hundred steps with and without before a long run.
#
# Left out on purpose:
#   TPU defaults by now: xla_tpu_enable_latency_hiding_scheduler, xla_enable_async_all_gather,
#     xla_tpu_enable_async_collective_fusion and its _fuse_all_gather (openxla.org/xla/flags_guidance).
#   GPU defaults by now: asynchronous collectives, the high-priority stream for them.
#   To try for yourself, they cost memory: collective pipelining through the scanned blocks
#     (TPU xla_tpu_enable_ici_ag_pipelining with the two xla_should_*_in_chain flags; GPU
#     xla_gpu_enable_pipelined_{all_gather,reduce_scatter,all_reduce}).

xla_environment() {
  case $1 in
    tpu)
      # Fail, rather than train on the host's CPU, when the chips cannot be reached.
      echo JAX_PLATFORMS=tpu,cpu
      # Gradient all-reduces run beside computation; off by default, recommended for v5e.
      local flags="--xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true"
      echo "LIBTPU_INIT_ARGS=$flags${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
      ;;
    gpu)
      echo JAX_PLATFORMS=cuda,cpu
      # Moves collectives apart from their use, so that kernels run meanwhile; off by default.
      local flags="--xla_gpu_enable_latency_hiding_scheduler=true"
      echo "XLA_FLAGS=$flags${XLA_FLAGS:+ $XLA_FLAGS}"
      # The share of a GPU's memory that JAX takes at start (default 0.75); the rest is NCCL's.
      echo "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}"
      ;;
    cpu)
      echo JAX_PLATFORMS=cpu
      ;;
  esac
}

"""Throughput of our base U-Net against diffusers' UNet2DConditionModel in torch.

  python -m benchmarks.unet_vs_diffusers                      # about 5 minutes on 2 cores
  python -m benchmarks.unet_vs_diffusers --what=sampling --resolution=64 --turns=3 --json=r.json
  python -m benchmarks.gpu_unet                               # the same on a GPU, at its size

Measured, in turns (ours, theirs, ours, theirs, ...) in one process after a warm-up:
  training: one step of forward, backward and AdamW; loss on eps, 10 % of prompts dropped. No
    gradient clipping, no moving average, on either side.
  sampling: guided DDIM, two estimates per step in one doubled batch. Ours is one jitted program
    (contextdiff_jax.sampling.loop); theirs a DDIMScheduler loop under torch.inference_mode.
Equal: resolution, batch size, text tokens and their width, dtype, cores, number of parameters
(within 5 %; checked). torch runs in the memory layout that a trial (not compiled) finds faster,
with the fused AdamW and scaled_dot_product_attention; --torch_compile=inductor also compiles it.
With --dtype=bfloat16 both train with float32 parameters and optimizer; in sampling torch's
parameters are cast to bfloat16 once, ours stay float32 and are cast by the compiled program.

Peers:
  deepfloyd_if (default): the blocks of DeepFloyd's IF, diffusers' implementation of Imagen: the
    same network as ours, block by block. Differences: the text is normalized by GroupNorm instead
    of LayerNorm before cross-attention, pooled before its projection instead of after it, and its
    null condition is zeros instead of a learned token.
  stable_diffusion: the same number of blocks, attention at the same levels, but each attention is
    a transformer block (self-attention, cross-attention, gated MLP), resampling is a plain
    convolution, and the width is adjusted so that the number of parameters matches, which it
    does with --attention_levels=1,2, the default of diffusers (none at the lowest resolution).
  --what=convolutions also measures a forward pass, and its convolutions alone, in both frameworks.
FLOPs, on both sides: matrix products, convolutions and attention; a multiply-add is two, padding is
not counted. MFU (model FLOPs utilization, Chowdhery et al. 2022) is their rate as a share of the
device's peak (benchmarks/devices.py, or --peak_tflops); a training step counts as three calls.
"""

import argparse
from collections.abc import Sequence

from benchmarks import against_diffusers, torch_unet
from benchmarks.against_diffusers import flags_parser, numbers
from benchmarks.workload import Workload
from contextdiff_jax.networks.config import UNetConfig

AIMS = {"training": 1.2, "sampling": 1.5}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    parser = flags_parser("unet_vs_diffusers", __doc__)
    add = parser.add_argument
    add("--peer", choices=torch_unet.KINDS, default=torch_unet.KINDS[0])
    add("--resolution", type=int, default=32)
    add("--batch_size", type=int, default=8, help="images of a training step")
    add("--width", type=int, default=64, help="channels of our first level")
    add("--multipliers", type=numbers, default=(1, 2, 3, 4), help="of the width, by level")
    add("--num_blocks", type=int, default=1, help="blocks of each level on the way down")
    add("--attention_levels", type=numbers, default=(1, 2, 3))
    add("--head_dim", type=int, default=32)
    add("--groups", type=int, default=32, help="of every GroupNorm")
    add("--text_dim", type=int, default=256)
    add("--text_tokens", type=int, default=77)
    add("--num_steps", type=int, default=50, help="of sampling")
    return parser.parse_args(argv)


def workload(args: argparse.Namespace) -> Workload:
    """Returns the checked sizes; ValueError for such that cannot work."""
    unet = UNetConfig(
        width=args.width,
        multipliers=args.multipliers,
        num_blocks=args.num_blocks,
        attention_levels=args.attention_levels,
        head_dim=args.head_dim,
        groups=args.groups,
        text_dim=args.text_dim,
        text_width=args.text_dim,
        # Blocks of this size compile quickly, and a CPU runs scanned convolutions slowly.
        scan_blocks=False,
        attention_implementation=args.attention,
    )
    return Workload.of(unet, args)


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison; returns what --json writes."""
    args = parse(argv)
    return against_diffusers.run(args, workload(args), args.peer, AIMS)


if __name__ == "__main__":
    main()

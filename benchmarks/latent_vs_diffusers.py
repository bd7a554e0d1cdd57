"""Throughput of our latent U-Net against the same network of diffusers' in torch.

  python -m benchmarks.latent_vs_diffusers                    # about 8 minutes on 2 cores
  python -m benchmarks.latent_vs_diffusers --what=sampling --width=320 --heads=8 --turns=3
  python -m benchmarks.gpu_latent                             # Stable Diffusion 1.5 on a GPU

The shape of Stable Diffusion 1.x at a reduced width: channels 1, 2, 4, 4 times --width, two
ResBlocks a level, transformers at the finer three, 77 tokens; on latents of --resolution. Measured
in turns, as unet_vs_diffusers says, and equal as there; parameters and operations are the same
exactly. What is dropped are prompts, to zeros on both sides.

convolutions: a forward pass of a guided step, and its convolutions alone, in both frameworks. Where
ours are slower in them than in the rest, they are why.
"""

import argparse
from collections.abc import Sequence

from benchmarks import against_diffusers
from benchmarks.against_diffusers import flags_parser, numbers
from benchmarks.workload import Workload
from contextdiff_jax.networks.latent_config import LatentUNetConfig


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = flags_parser("latent_vs_diffusers", __doc__)
    add = parser.add_argument
    add("--resolution", type=int, default=32, help="side of the latents")
    add("--batch_size", type=int, default=4, help="latents of a training step")
    add("--width", type=int, default=64, help="channels of the first level; 320 published")
    add("--multipliers", type=numbers, default=(1, 2, 4, 4), help="of the width, by level")
    add("--num_blocks", type=int, default=2, help="blocks of each level on the way down")
    add("--attention_levels", type=numbers, default=(0, 1, 2))
    add("--heads", type=int, default=2, help="of every attention; 8 published")
    add("--groups", type=int, default=32, help="of every GroupNorm")
    add("--text_dim", type=int, default=768)
    add("--text_tokens", type=int, default=77)
    add("--num_steps", type=int, default=20, help="of sampling")
    parser.set_defaults(what="all", sample_batch_size=2)
    return parser.parse_args(argv)


def workload(args: argparse.Namespace) -> Workload:
    """Returns the checked sizes; ValueError for such that cannot work."""
    unet = LatentUNetConfig(
        channels=tuple(args.width * multiplier for multiplier in args.multipliers),
        num_blocks=args.num_blocks,
        attention_levels=args.attention_levels,
        heads=(args.heads,) * len(args.multipliers),
        groups=args.groups,
        context_dim=args.text_dim,
        sample_size=args.resolution,
        attention_implementation=args.attention,
    )
    return Workload.of(unet, args, guidance_scale=7.5)


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison; returns what --json writes."""
    args = parse(argv)
    return against_diffusers.run(args, workload(args), "stable_diffusion", {})


if __name__ == "__main__":
    main()

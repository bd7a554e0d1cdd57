"""unet_vs_diffusers at the size of one GPU: a 0.4 B-parameter base U-Net in bfloat16.

  python -m benchmarks.gpu_unet --what=training --json=training.json
  python -m benchmarks.gpu_unet --what=sampling --json=sampling.json

Ours jitted, diffusers' with torch.compile, in turns on one GPU; ratios, MFU and JSON. Any flag of
unet_vs_diffusers overrides the settings here. What was measured is in docs/speed.md.
"""

import os
import sys
from collections.abc import Sequence

ON_GPU = ("--device=gpu", "--dtype=bfloat16", "--torch_compile=inductor")
SETTINGS = (
    *ON_GPU,
    "--resolution=64",
    "--batch_size=64",
    "--sample_batch_size=16",
    "--width=256",
    "--multipliers=1,2,3,4",
    "--num_blocks=2",
    "--attention_levels=1,2,3",
    "--head_dim=64",
    "--text_dim=1024",
    "--text_tokens=256",
    "--num_steps=50",
)


def share_the_device() -> None:
    """Keeps JAX from taking most of the device's memory in advance; before it is imported."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def main(argv: Sequence[str]) -> dict:
    """Runs the comparison; returns what --json writes."""
    share_the_device()
    from benchmarks import unet_vs_diffusers

    return unet_vs_diffusers.main([*SETTINGS, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])

"""latent_vs_diffusers at the size of Stable Diffusion 1.5, 860 M parameters, on one GPU.

  python -m benchmarks.gpu_latent --what=training --json=latent_training.json
  python -m benchmarks.gpu_latent --what=sampling --json=latent_sampling.json

Latents of pictures of 512 pixels, bfloat16; ours jitted, diffusers' with torch.compile, in turns on
one GPU; ratios, MFU and JSON. Any flag of latent_vs_diffusers overrides the settings here.
"""

import sys
from collections.abc import Sequence

from benchmarks.gpu_unet import ON_GPU, share_the_device

SETTINGS = (
    *ON_GPU,
    "--resolution=64",
    "--width=320",
    "--heads=8",
    "--batch_size=16",
    "--sample_batch_size=4",
    "--num_steps=25",
)


def main(argv: Sequence[str]) -> dict:
    """Runs the comparison; returns what --json writes."""
    share_the_device()
    from benchmarks import latent_vs_diffusers

    return latent_vs_diffusers.main([*SETTINGS, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])

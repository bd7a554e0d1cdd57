"""What both sides of a comparison with diffusers are given: sizes, inputs, hyper-parameters."""

import argparse
import dataclasses
from typing import Any

import numpy as np

from contextdiff_jax.diffusion.schedules import PUBLISHED_BETAS
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.latent_config import LatentUNetConfig


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes and inputs of the comparison.

    unet: our network; the peer's is derived from it. resolution: side of the images, or latents.
    batch_size: images of a training step. sample_batch_size: images drawn together; the network
    sees twice as many under guidance. text_tokens: tokens per prompt, all real. device: "cpu" or
    "gpu". dtype: what products compute in; parameters and optimizer are float32.
    """

    unet: UNetConfig | LatentUNetConfig
    resolution: int
    batch_size: int
    sample_batch_size: int
    text_tokens: int = 77
    device: str = "cpu"
    dtype: str = "float32"
    train_times: int = 1000
    learning_rate: float = 1e-4
    drop: float = 0.1
    guidance_scale: float = 3.0
    seed: int = 0

    @classmethod
    def of(
        cls, unet: UNetConfig | LatentUNetConfig, args: argparse.Namespace, **more: Any
    ) -> "Workload":
        """Returns that of a comparison's flags; ValueError for sizes that cannot work."""
        work = cls(
            unet,
            args.resolution,
            args.batch_size,
            args.sample_batch_size,
            args.text_tokens,
            args.device,
            args.dtype,
            **more,
        )
        work.validate()
        return work

    @property
    def in_latents(self) -> bool:
        """Whether what is drawn are latents, which have no bounds and a schedule of their own."""
        return isinstance(self.unet, LatentUNetConfig)

    @property
    def text_dim(self) -> int:
        """Width of the prompts' tokens."""
        return self.unet.context_dim if self.in_latents else self.unet.text_dim

    @property
    def schedule(self) -> str:
        """The noise schedule, by the name that it has on both sides."""
        return "scaled_linear" if self.in_latents else "linear"

    @property
    def betas(self) -> tuple[float, float]:
        """Its first and last beta."""
        return PUBLISHED_BETAS[self.schedule]

    def validate(self) -> None:
        """Raises ValueError for sizes that cannot work."""
        self.unet.validate("latent_unet" if self.in_latents else "unet")
        self.unet.check_resolution(self.resolution)
        for key in ("batch_size", "sample_batch_size", "text_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)}: must be at least 1")

    def arrays(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns images (batch, H, W, C) in [-1, 1] and text (batch, L, D), float32."""
        rng = np.random.default_rng(self.seed)
        shape = (batch, self.resolution, self.resolution, self.unet.image_channels)
        images = rng.uniform(-1.0, 1.0, shape)
        text = rng.standard_normal((batch, self.text_tokens, self.text_dim))
        return images.astype(np.float32), text.astype(np.float32)

"""What both sides of unet_vs_diffusers are given: sizes, inputs, hyper-parameters."""

import dataclasses

import numpy as np

from contextdiff_jax.networks.config import UNetConfig


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes and inputs of the comparison.

    unet: our network; the peer's is derived from it. resolution: side of the images.
    batch_size: images of a training step. sample_batch_size: images drawn together; the network
    sees twice as many under guidance. text_tokens: tokens per prompt, all real. device: "cpu" or
    "gpu". dtype: what products compute in; parameters and optimizer are float32.
    """

    unet: UNetConfig
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

    def validate(self) -> None:
        """Raises ValueError for sizes that cannot work."""
        self.unet.validate("unet")
        self.unet.check_resolution(self.resolution)
        for key in ("batch_size", "sample_batch_size", "text_tokens"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)}: must be at least 1")

    def arrays(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns images (batch, H, W, 3) in [-1, 1] and text (batch, L, D), float32."""
        rng = np.random.default_rng(self.seed)
        images = rng.uniform(-1.0, 1.0, (batch, self.resolution, self.resolution, 3))
        text = rng.standard_normal((batch, self.text_tokens, self.unet.text_dim))
        return images.astype(np.float32), text.astype(np.float32)

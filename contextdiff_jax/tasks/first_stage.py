"""The section of a config that names a first stage, and the space that it makes."""

import dataclasses

from contextdiff_jax.encoders.frozen import FrozenStage
from contextdiff_jax.networks.tiny_autoencoder import TinyAutoencoder
from contextdiff_jax.spaces.latents import LatentSpace, Normalization
from contextdiff_jax.system.limits import most
from contextdiff_jax.system.resumed import FREE
from contextdiff_jax.tasks.task_config import Encoders

_OF_CHANNELS = most(10**6, entries=1024)


@dataclasses.dataclass(frozen=True)
class FirstStageRef:
    """The frozen first stage of a run in latents; its weights' identity is recorded, not its place.

    path: folder of it: vae/ of Stable Diffusion, a VQ stage, or a tiny one (TAESD, TAEF2).
    decoder: folder of a tiny autoencoder of the same latents, by which CLIP sees the estimate of
        x0, in training and in sampling; empty: the first stage itself decodes it, at many times
        the cost. Not read without an adapter, or by one that reads no image tokens.
    mean, std: of each channel of the latents, which x0 is normalized by. `prepare --what=latents`
        measures them. () multiplies by the stage's own scaling factor, as published weights need.
    """

    path: str = dataclasses.field(metadata=FREE)
    decoder: str = dataclasses.field(default="", metadata=FREE)
    mean: tuple[float, ...] = dataclasses.field(default=(), metadata=_OF_CHANNELS)
    std: tuple[float, ...] = dataclasses.field(default=(), metadata=_OF_CHANNELS)

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if not self.path:
            raise ValueError(f"{where}.path is empty: must be the folder of a first stage")
        normalization = self.normalization
        if normalization is not None:
            normalization.validate(len(self.mean), where)

    @property
    def normalization(self) -> Normalization | None:
        """What x0 is normalized by; None for the stage's own factor."""
        return Normalization(self.mean, self.std) if self.mean or self.std else None

    def load(self, encoders: Encoders, shown: bool) -> tuple[FrozenStage, FrozenStage | None]:
        """Returns the stage, and what decodes the estimate of x0 for CLIP beside it.

        shown: whether CLIP sees the estimate.
        """
        decoder = encoders.first_stage(self.decoder) if shown and self.decoder else None
        return encoders.first_stage(self.path), decoder

    def space(
        self, stage: FrozenStage, decoder: FrozenStage | None, resolution: int, where: str
    ) -> LatentSpace:
        """Returns the space of what `load` gave; ValueError, naming keys of `where`, for others."""
        if decoder is not None and not isinstance(decoder.module, TinyAutoencoder):
            raise ValueError(f"{where}.decoder = {self.decoder!r}: must be a tiny autoencoder")
        space = LatentSpace(
            stage.module,
            resolution,
            self.normalization,
            cheap=None if decoder is None else decoder.module,
        )
        space.validate(where)
        return space

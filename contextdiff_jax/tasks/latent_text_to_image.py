"""Pictures of prompts in the latents of a frozen first stage: Stable Diffusion.

It draws with published weights. Training has no configuration yet, so the task is not one of the
union: generation/stable_diffusion.py builds it of a folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Given
from contextdiff_jax.diffusion.process import Denoise, Keep, Process
from contextdiff_jax.encoders.frozen import FrozenStage
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import match_batch
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.training.task import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentTextToImage(DiffusionTask):
    """A DiffusionTask whose space is a LatentSpace, and whose denoiser a LatentUNet.

    conditions: one, WholeText. first_stage: the space's own, among the frozen encoders.
    """

    first_stage: FrozenStage

    def encoders(self) -> dict[str, Any]:
        """Returns the frozen encoders that are loaded, the first stage among them."""
        return {"first_stage": self.first_stage} | super().encoders()

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve."""
        return super().identities() | {"first_stage": self.first_stage.identity}

    def described(self) -> Any:
        """Returns what decides about its pictures beside weights and encoders; repr tells it."""
        space, [text] = self.space, self.conditions
        ends = self.schedule.name, self.schedule.alpha_bar[1], self.schedule.alpha_bar[-1]
        more = ends, text.negative, space.shape, space.normalization, space.tile, space.overlap
        return *super().described(), more

    def sample(
        self,
        params: Params,
        frozen: Any,
        batch: Batch,
        keys: jax.Array,
        sampler: SamplerConfig,
    ) -> jax.Array:
        """Draws pictures (B, H, W, 3) in [-1, 1]: text encoder, every step and decoder. Pure.

        batch: the arrays of `collate`. keys (B,): one key per picture.
        """
        space = self.space.bind({"stage": frozen[self.first_stage.identity]})
        networks = self.networks(params, frozen, batch)
        return space.decode(loop.sample(*networks, keys, space.shape, sampler))

    def _functions(
        self, params: Params, frozen: Any, given: Mapping[str, Given]
    ) -> tuple[Process, Denoise]:
        [text] = given.values()

        def denoise(x: jax.Array, t: jax.Array, keep: Keep) -> jax.Array:
            tokens, null = match_batch((text.tokens, text.inputs["null"]), x.shape[0])
            context = jnp.where(keep[:, None, None], tokens, null)
            return self.denoiser.apply({"params": params["denoiser"]}, x, t, context)

        bounds = self.space.bounds
        return Process(self.schedule, self.config.prediction, None, bounds), denoise

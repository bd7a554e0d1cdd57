"""What a task of kind flow has in the place of the paper's adapter: its relation, as functions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from contextdiff_jax.conditions.condition import Given
from contextdiff_jax.diffusion.flow import Couple, FlowProcess
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.predictions import PredictionKind
from contextdiff_jax.diffusion.relations import Affine, bounded, from_modes, whitened
from contextdiff_jax.networks import axes
from contextdiff_jax.networks.flow_relations import AffineRelation, Coupling
from contextdiff_jax.tasks.flow_config import FlowConfig
from contextdiff_jax.tasks.whitening import Moments
from contextdiff_jax.training.task import Params

_MAP = (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, axes.PATCH)


@dataclasses.dataclass(frozen=True)
class Flow:
    """config: which relation. moments: of relation whitening, where the data were there to fit.

    mean_velocities: whether the network learns these, and not velocities.
    """

    config: FlowConfig
    moments: Moments | None = None
    dtype: Any = jnp.float32
    mean_velocities: bool = False

    @property
    def _affine(self) -> AffineRelation:
        return AffineRelation(self.config.modes, self.config.width)

    @property
    def _coupling(self) -> Coupling:
        return Coupling(self.config.width, self.dtype)

    def init(self, key: jax.Array, shape: tuple[int, int, int], given: Mapping[str, Given]) -> Any:
        """Returns the relation's parameters, boxed with their axes; {} where there are none.

        shape: of one x0. given: for one example.
        Raises ValueError where the moments are of another shape, or there is no condition to read.
        """
        kind = self.config.relation
        if kind == "whitening":
            # Without data only shapes are asked for; what is not a number cannot train.
            unknown = jnp.full(shape, jnp.nan)
            mean, std = self.moments or (unknown, unknown)
            if mean.shape != shape:
                raise ValueError(
                    f"relation 'whitening' is fitted to pictures {mean.shape}: must be {shape}, "
                    "that of the process"
                )
            return {
                "mean": nn.LogicallyPartitioned(jnp.asarray(mean), _MAP),
                "std": nn.LogicallyPartitioned(jnp.asarray(std), _MAP),
            }
        if kind == "affine":
            return self._affine.init(key, shape, self._context(given))["params"]
        if kind == "coupling":
            example = jnp.zeros((1, *shape))
            return self._coupling.init(key, example, self._context(given))["params"]
        return {}

    def process(
        self,
        path: LinearPath,
        prediction: PredictionKind,
        params: Params,
        given: Mapping[str, Given],
        bounds: tuple[float, float] | None,
    ) -> FlowProcess:
        """Returns the process for a batch's conditions. params: of `init`."""
        context = self._relation(params, given)
        couple = self._couple(params, given) if self.config.relation == "coupling" else None
        guided = self.mean_velocities and self.config.mean.guidance != 1
        return FlowProcess(
            path,
            prediction,
            bounds=bounds,
            context=context,
            couple=couple,
            mean_velocities=self.mean_velocities,
            guided=guided,
        )

    def _relation(self, params: Params, given: Mapping[str, Given]) -> Affine | None:
        if self.config.relation == "whitening":
            return whitened(*(jax.lax.stop_gradient(params[name]) for name in ("mean", "std")))
        if self.config.relation == "scaled":
            return Affine(jnp.float32(self.config.scale), jnp.float32(0))
        if self.config.relation != "affine":
            return None
        shape = params["offset"].shape
        slope, offset, more = self._affine.apply({"params": params}, shape, self._context(given))
        offset = offset if more is None else offset + from_modes(more)
        return bounded(slope, offset, self.config.limit)

    def _couple(self, params: Params, given: Mapping[str, Given]) -> Couple:
        context = self._context(given)

        def couple(x0: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
            mean, log_std = self._coupling.apply({"params": params}, x0, context)
            std = jnp.exp(log_std)
            kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.square(std) - 1 - 2 * log_std)
            return mean + std * noise, kl

        return couple

    def _context(self, given: Mapping[str, Given]) -> jax.Array | None:
        """Returns the mean of each condition's tokens, side by side (B, D); None without any.

        No gradient passes: the conditions' own parameters are the denoiser's.
        """
        if self.config.relation == "affine" and not self.config.by_condition:
            return None
        means = [_pooled(each) for each in given.values() if each.tokens is not None]
        if self.config.by_condition and not means:
            raise ValueError(
                "diffusion.flow.by_condition = True: must be False, no condition here has tokens"
            )
        if not means:
            return None
        context = jax.lax.stop_gradient(jnp.concatenate(means, axis=1))
        return jnp.roll(context, 1, axis=0) if self.config.shuffle_condition else context


def _pooled(given: Given) -> jax.Array:
    """Returns the mean of the tokens that are there, (B, D) float32; zeros where none is."""
    tokens = given.tokens.astype(jnp.float32)
    mask = given.mask & given.present[:, None]
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask[..., None], tokens, 0), axis=1) / count

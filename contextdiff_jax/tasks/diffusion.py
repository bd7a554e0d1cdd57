"""Text-to-image diffusion with the context-aware adapter: the loss, its metrics, sampling.

The forward process is biased by b_t = k_t r(x0, c, t) (eq. 1), and the denoiser and the adapter
train jointly (objective.py); gradients reach the adapter through x_t.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from contextdiff_jax.diffusion.bound_step import Drawn, bound_step
from contextdiff_jax.diffusion.process import Denoise, Process, Relation
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import match_batch
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks import objective
from contextdiff_jax.tasks.conditioning import Condition, Conditioning, hidden
from contextdiff_jax.tasks.config import DiffusionConfig
from contextdiff_jax.training.task import Batch, Metrics, Params

_LAST_SHARE = 40  # the last T / 40 steps, where an unbounded adapter hides its cost
_DIAGNOSED = 8  # examples


@dataclasses.dataclass(frozen=True)
class DiffusionTask:
    """One stage of a cascade: a denoiser, perhaps an adapter, frozen encoders.

    resolution: side of the images in pixels; images are (B, resolution, resolution, 3).
    preview_batch: the arrays `Conditioning.encode` reads, for the preview's prompts, or None.
    """

    config: DiffusionConfig
    schedule: Schedule
    denoiser: nn.Module
    adapter: nn.Module | None
    conditioning: Conditioning
    sampler: SamplerConfig
    resolution: int
    preview_sampler: SamplerConfig | None = None
    preview_batch: Mapping[str, np.ndarray] | None = None

    @property
    def frozen(self) -> Any:
        """The frozen encoders' parameters."""
        return self.conditioning.parameters()

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`, boxed with logical axis names."""
        return self.conditioning.boxed_parameters()

    def token_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the arrays that `loss` reads of captions."""
        return self.conditioning.token_shapes(batch_size)

    # -- parameters ---------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Returns {"denoiser": ..., "adapter": ...}, boxed with logical axis names."""
        denoiser_key, adapter_key = jax.random.split(key)
        images = jnp.zeros((1, self.resolution, self.resolution, 3))
        times = jnp.ones((1,))
        condition = self.conditioning.example()
        params = {
            "denoiser": self.denoiser.init(
                denoiser_key,
                images,
                times,
                text=condition.text,
                text_mask=condition.text_mask,
                **self._example_extras(),
            )["params"]
        }
        if self.adapter is not None:
            tokens = jax.eval_shape(self.conditioning.image_tokens, self.frozen, images)
            params["adapter"] = self.adapter.init(
                adapter_key,
                images,
                times,
                jnp.zeros(tokens.shape, tokens.dtype),
                condition.clip_text,
                condition.clip_mask,
            )["params"]
        return params

    def _example_extras(self) -> dict[str, jax.Array]:
        return {}

    # -- training -----------------------------------------------------------------------------

    def extras(self, images: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the denoiser's further inputs in training; none for the base stage."""
        return {}

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The objective on a batch with uint8 "image" and the arrays of `tokenize`."""
        time_key, noise_key, drop_key, extras_key = jax.random.split(key, 4)
        x0 = from_uint8(batch["image"])
        t = objective.draw_times(self.schedule, time_key, x0.shape[0])
        noise = jax.random.normal(noise_key, x0.shape)
        condition, keep = self._dropped(self.conditioning.encode(frozen, batch), drop_key)
        extras = self.extras(x0, extras_key)
        draw = objective.Draw(x0, t, noise, keep)

        def of(loss, params: Params) -> tuple[jax.Array, Metrics]:
            return loss(self.config, *self._functions(params, frozen, condition, extras), draw)

        if self.config.objective == "bound":
            return of(objective.bound_loss, params)
        if self.config.objective == "simple" or self.adapter is None:
            return of(objective.simple_loss, params)
        denoiser, adapter = params["denoiser"], params["adapter"]
        stop = jax.lax.stop_gradient
        simple, metrics = of(
            objective.simple_loss, {"denoiser": denoiser, "adapter": stop(adapter)}
        )
        bits, more = of(objective.bound_loss, {"denoiser": stop(denoiser), "adapter": adapter})
        return simple + bits, metrics | more

    def _dropped(self, condition: Condition, key: jax.Array) -> tuple[Condition, jax.Array]:
        """Hides conditions: from the denoiser alone (keep), or from both (present)."""
        denoiser_key, both_key = jax.random.split(key)
        shape = condition.present.shape
        keep = ~jax.random.bernoulli(denoiser_key, self.config.drop_condition, shape)
        if self.config.drop_both:
            visible = ~jax.random.bernoulli(both_key, self.config.drop_both, shape)
            condition = hidden(condition, visible)
        return condition, keep

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Divergence (eq. 4, nats per example) summed over the last T / 40 steps of the process.

        Rises when the adapter hides in x_t what the sampler must then invent at its start.
        """
        batch = jax.tree.map(lambda leaf: leaf[:_DIAGNOSED], batch)
        noise_key, extras_key = jax.random.split(key)
        x0 = from_uint8(batch["image"])
        condition = self.conditioning.encode(frozen, batch)
        keep = jnp.ones(x0.shape[:1], bool)
        extras = self.extras(x0, extras_key)

        process, denoise = self._functions(params, frozen, condition, extras)

        def divergence(offset: jax.Array) -> jax.Array:
            t = process.num_steps - offset
            noise = jax.random.normal(jax.random.fold_in(noise_key, offset), x0.shape)
            drawn = Drawn(process.biased(x0, t, t - 1), t, t - 1, noise, keep)
            # Clipped as in sampling: an eps-network's x0 is arbitrarily large here.
            return jnp.mean(bound_step(process, denoise, drawn, clip=True).nats)

        last = min(-(-self.schedule.num_steps // _LAST_SHARE), self.schedule.num_steps - 1)
        return {"last_steps_kl": jnp.sum(jax.lax.map(divergence, jnp.arange(last)))}

    # -- the two networks as functions ------------------------------------------------------------

    def networks(
        self,
        params: Params,
        frozen: Any,
        batch: Batch,
        extras: dict[str, jax.Array] | None = None,
    ) -> tuple[Process, Denoise]:
        """Returns the process with its relation, and the denoiser, for a batch's conditions.

        batch: the arrays of `tokenize`. extras: the denoiser's further inputs, one per example.
        """
        condition = self.conditioning.encode(frozen, batch)
        return self._functions(params, frozen, condition, extras or {})

    def _functions(
        self, params: Params, frozen: Any, condition: Condition, extras: dict[str, jax.Array]
    ) -> tuple[Process, Denoise]:
        def denoise(x: jax.Array, t: jax.Array, keep: jax.Array) -> jax.Array:
            matched, inputs = match_batch((condition, extras), x.shape[0])
            return self._denoise(params, matched, x, t, keep, inputs)

        relation = self._relation_of(params, frozen, condition)
        return Process(self.schedule, self.config.prediction, relation), denoise

    def _relation_of(self, params: Params, frozen: Any, condition: Condition) -> Relation | None:
        """Returns relation(x0, times) -> r(x0, c, t) for each of the times; None if no adapter."""
        if self.adapter is None:
            return None
        mask = condition.clip_mask & condition.present[:, None]

        def relation(x0: jax.Array, times: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            tokens = self.conditioning.image_tokens(frozen, x0)
            inputs = (tokens, condition.clip_text, mask)
            return tuple(
                self.adapter.apply({"params": params["adapter"]}, x0, t, *inputs) for t in times
            )

        return relation

    def _denoise(self, params, condition: Condition, x_t, t, keep, extras) -> jax.Array:
        return self.denoiser.apply(
            {"params": params["denoiser"]},
            x_t,
            t.astype(jnp.float32),
            text=condition.text,
            text_mask=condition.text_mask,
            keep=keep & condition.present,
            **extras,
        )

    # -- sampling -----------------------------------------------------------------------------

    def sample(
        self,
        params: Params,
        frozen: Any,
        batch: Batch,
        keys: jax.Array,
        sampler: SamplerConfig,
        extras: dict[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Draws images (B, H, W, 3) in [-1, 1] for tokenized prompts. Pure; meant to be jitted.

        keys (B,): one key per picture. extras: the denoiser's further inputs, one per picture.
        """
        shape = (self.resolution, self.resolution, 3)
        return loop.sample(*self.networks(params, frozen, batch, extras), keys, shape, sampler)

    def preview(self, params: Params, frozen: Any, seed: int) -> jax.Array | None:
        """Draws the preview's prompts, the same noise each time."""
        if self.preview_batch is None:
            return None
        batch = jax.tree.map(jnp.asarray, dict(self.preview_batch))
        keys = sample_keys(seed, jnp.arange(len(batch["present"])))
        return self.sample(
            params, frozen, batch, keys, self.preview_sampler, self.clean_extras(batch)
        )

    def clean_extras(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the denoiser's further inputs for a batch's images, without augmentation."""
        return {}


def from_uint8(images: jax.Array) -> jax.Array:
    """Maps 0..255 to [-1, 1] in float32."""
    return images.astype(jnp.float32) / 127.5 - 1.0

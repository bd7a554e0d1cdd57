"""Diffusion made of parts: space, conditions, process, networks, sampler.

The forward process is biased by b_t = k_t r(x0, c, t) (eq. 1), and the denoiser and the adapter
train jointly (objective.py); gradients reach the adapter through x_t.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from contextdiff_jax.conditions.condition import Condition, Given, hidden
from contextdiff_jax.conditions.requests import Request, values_of
from contextdiff_jax.conditions.together import (
    Visible,
    adapter_reads,
    denoiser_inputs,
    draw_hidden,
    encode_all,
    init_all,
    made_of_target,
    merged,
)
from contextdiff_jax.diffusion.linear_path import LinearPath
from contextdiff_jax.diffusion.process import Denoise, Keep, Process, Relation
from contextdiff_jax.diffusion.schedules import Schedule
from contextdiff_jax.encoders.frozen import ImageEncoder
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import match_batch
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.spaces.pixels import Pixels
from contextdiff_jax.tasks import flow_objective, objective
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.flow import Flow
from contextdiff_jax.tasks.mean_flow_objective import draw_steps, mean_flow_loss
from contextdiff_jax.tasks.training_times import draw_times
from contextdiff_jax.training.shares import of_adapter
from contextdiff_jax.training.task import Batch, Metrics, Params

_DIAGNOSED = 8  # examples
_SLOW = 10.0  # the last time, as a network of mean velocities is told it
_CONDITIONS = 0x7FFFFFFF  # a stream of keys beside the networks', which split gives
_SPACE = 0x7FFFFFFF  # a stream beside those of conditions, which fold in their numbers


@dataclasses.dataclass(frozen=True)
class DiffusionTask:
    """One stage of a cascade: a denoiser, perhaps an adapter, what it is conditioned on.

    space: what x0 lives in, see `space_in`. conditions: what the pictures are asked to show, of
    different names.
    denoiser: a module that takes x (B, *space.shape), t (B,), and of the conditions text, text_mask
    and keep, where one has tokens, and their `inputs` by name; see `denoiser_reads`. adapter,
    image_encoder: the relation and what encodes x0 for it; both None for plain diffusion, the
    latter alone for an adapter that reads no image tokens.
    flow: the relation of kind flow, which has no adapter; None of kind vp.
    preview_batch: the arrays that the conditions read for the preview's pictures, or None.
    """

    config: DiffusionConfig
    schedule: Schedule | LinearPath
    space: Pixels
    conditions: tuple[Condition, ...]
    denoiser: nn.Module
    adapter: nn.Module | None
    image_encoder: ImageEncoder | None
    sampler: SamplerConfig
    preview_sampler: SamplerConfig | None = None
    preview_batch: Mapping[str, np.ndarray] | None = None
    flow: Flow | None = None

    @property
    def resolution(self) -> int:
        """Side of the pictures in pixels."""
        return self.space.resolution

    @property
    def of_picture(self) -> bool:
        """Whether a condition is made of the picture itself, or of the one a stage before drew."""
        return any(condition.of_picture for condition in self.conditions)

    @property
    def most_augmentation(self) -> float | None:
        """The largest noise level that a picture to enlarge had in training; None without one."""
        levels = [condition.most_augmentation for condition in self.conditions]
        return max((level for level in levels if level is not None), default=None)

    # -- what is frozen -----------------------------------------------------------------------

    def encoders(self) -> dict[str, Any]:
        """Returns the frozen encoders that are loaded, by what they are for."""
        image = {} if self.image_encoder is None else {"clip_image": self.image_encoder}
        return image | merged(condition.encoders() for condition in self.conditions)

    @property
    def frozen(self) -> Any:
        """The frozen encoders' parameters, each set once, by identity."""
        return {encoder.identity: encoder.params for encoder in self.encoders().values()}

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`, boxed with logical axis names."""
        return {encoder.identity: encoder.boxed() for encoder in self.encoders().values()}

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve, for checkpoints to record."""
        found = merged(condition.identities() for condition in self.conditions)
        image = self.image_encoder
        return found if image is None else found | {"clip_image": image.identity}

    @property
    def adapter_tokenizer(self) -> Any:
        """The tokenizer of the text that the adapter reads; None where it reads none."""
        encoders = self.encoders()
        encoder = encoders.get("clip_text", encoders.get("text"))
        return None if self.adapter is None or encoder is None else encoder.tokenizer

    def without_adapter(self) -> "DiffusionTask":
        """Returns the task with the adapter and its own encoders left out."""
        conditions = tuple(condition.without_adapter() for condition in self.conditions)
        return dataclasses.replace(self, adapter=None, image_encoder=None, conditions=conditions)

    def described(self) -> Any:
        """Returns what decides about its pictures beside weights and encoders; repr tells it."""
        modules = (self.denoiser, self.adapter)
        configs = [None if module is None else module.config for module in modules]
        return configs, self.config, self.resolution

    def protocol(self) -> dict[str, str]:
        """Returns how conditions are made, where a measurement depends on it."""
        return merged(condition.protocol() for condition in self.conditions)

    # -- what it reads ------------------------------------------------------------------------

    def collate(self, captions: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """Returns the arrays of the conditions that captions give."""
        given = (condition for condition in self.conditions if condition.captioned)
        return merged(condition.collate(captions, warn) for condition in given)

    def collate_requests(
        self, requests: Sequence[Request], warn: bool = False
    ) -> dict[str, np.ndarray]:
        """Returns the arrays of the conditions that requests give; others are not read."""
        asked = (condition for condition in self.conditions if not condition.of_picture)
        return merged(each.collate(values_of(requests, each), warn) for each in asked)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a training batch: uint8 pictures and the conditions' arrays."""
        image = jax.ShapeDtypeStruct((batch_size, *self.space.image_shape), jnp.uint8)
        return {"image": image} | self._condition_shapes(batch_size)

    def sampled_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the batch that `sample` reads."""
        batch = self.batch_shapes(batch_size)
        return self._condition_shapes(batch_size) | jax.eval_shape(self.of_target, batch)

    def _condition_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return merged(condition.shapes(batch_size) for condition in self.conditions)

    def of_target(self, batch: Batch, key: jax.Array | None = None) -> dict[str, jax.Array]:
        """Returns what conditions make of the batch's own pictures; clean without a key."""
        return made_of_target(self.conditions, batch, key)

    def of_before(self, images: jax.Array, level: float, keys: jax.Array) -> dict[str, jax.Array]:
        """Returns what conditions make of the pictures (B, h, w, C) that the stage before drew.

        level: of the noise added to them, in [0, 1]. keys (B,): one per picture.
        """
        return merged(condition.of_before(images, level, keys) for condition in self.conditions)

    # -- what a task of another space has otherwise --------------------------------------------

    def space_in(self, frozen: Any) -> Pixels:
        """Returns the space, ready to encode and decode."""
        return self.space

    def encoded(self, frozen: Any, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Returns x0 (B, *space.shape) of a batch; key: of what is drawn of it."""
        return self.space_in(frozen).encode(batch["image"], key)

    def denoiser_reads(self, inputs: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """Returns the denoiser's arguments beside x and t, of what the conditions give."""
        return inputs

    def controlled(
        self,
        params: Params,
        frozen: Any,
        placed: tuple[jax.Array, jax.Array],
        read: Mapping[str, jax.Array],
    ) -> Mapping[str, Any]:
        """Returns what the denoiser reads beside x and t, `placed`; a branch may add to it."""
        return read

    def denoiser_weights(self, params: Params) -> Params:
        """Returns the parameters that the denoiser is applied with."""
        return params["denoiser"]

    # -- parameters ---------------------------------------------------------------------------

    def init(self, key: jax.Array) -> Params:
        """Returns {"denoiser": ..., "adapter": ..., "conditions": ...}, boxed with their axes.

        Of kind flow there is "relation" in the place of the adapter.
        """
        denoiser_key, adapter_key = jax.random.split(key)
        images, times = jnp.zeros((1, *self.space.shape)), jnp.ones((1,))
        told = self._told(times)
        own = init_all(self.conditions, jax.random.fold_in(key, _CONDITIONS))
        given = self._example(nn.unbox(own))
        read = self.denoiser_reads(denoiser_inputs(given, None))
        params = {"denoiser": self.denoiser.init(denoiser_key, images, told, **read)["params"]}
        if self.adapter is not None:
            shapes = jax.eval_shape(self._image_tokens, self.frozen, images)
            tokens = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            inputs = (images, times, tokens, *adapter_reads(given))
            params["adapter"] = self.adapter.init(adapter_key, *inputs)["params"]
        if self.flow is not None:
            relation = self.flow.init(adapter_key, self.space.shape, given)
            params |= {"relation": relation} if relation else {}
        return params | ({"conditions": own} if own else {})

    def _example(self, own: Params) -> dict[str, Given]:
        """Returns what the conditions give for one row of nothing: zeros of the right shapes."""
        batch = self.sampled_shapes(1)
        shapes = jax.eval_shape(self._given, {"conditions": own}, self.frozen, batch)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    # -- training -----------------------------------------------------------------------------

    def loss(
        self, params: Params, frozen: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The objective on a batch with uint8 "image" and the arrays of `collate`."""
        time_key, noise_key, drop_key, condition_key = jax.random.split(key, 4)
        x0 = self.encoded(frozen, batch, jax.random.fold_in(condition_key, _SPACE))
        t, ends = self._draw_times(time_key, x0.shape[0])
        noise = jax.random.normal(noise_key, x0.shape)
        batch = {**batch, **self.of_target(batch, condition_key)}
        shown, keep = self._drop(drop_key, x0.shape[0])
        draw = objective.Draw(x0, t, noise, keep, ends)
        fixed = self._given(params, frozen, batch)  # encoded once, also of two losses
        for name in params.get("conditions", {}):
            del fixed[name]

        def of(loss, params: Params) -> tuple[jax.Array, Metrics]:
            given = self._given(params, frozen, batch, fixed)
            given = {
                name: each if name not in shown else hidden(each, shown[name])
                for name, each in given.items()
            }
            return loss(self.config, *self._functions(params, frozen, given), draw)

        if self.flow is not None:
            means = self.flow.mean_velocities
            return of(mean_flow_loss if means else flow_objective.flow_loss, params)
        if self.config.objective == "bound":
            return of(objective.bound_loss, params)
        if self.config.objective == "simple" or self.adapter is None:
            return of(objective.simple_loss, params)
        simple, metrics = of(objective.simple_loss, _held(params, adapter=True))
        bits, more = of(objective.bound_loss, _held(params, adapter=False))
        return simple + bits, metrics | more

    def _draw_times(self, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns times (count,), and where steps from there end, if the objective has some."""
        law = self.config, self.schedule, key, count
        if self.flow is not None and self.flow.mean_velocities:
            return draw_steps(*law)
        return draw_times(*law), None

    def _told(self, t: jax.Array) -> jax.Array:
        """Returns the times (B,), or (B, 2) with steps' ends, as the denoiser reads them.

        One of mean velocities reads (B, 2), in 0..10: its derivative in time is part of what it
        learns, and sinusoids of 1..T would make that hundreds of times the velocity.
        """
        if self.flow is None or not self.flow.mean_velocities:
            return t
        pairs = jnp.stack([t, t], axis=1) if t.ndim == 1 else t
        return _SLOW / self.schedule.num_steps * pairs

    def _drop(self, key: jax.Array, count: int) -> tuple[Visible, Visible]:
        """Draws where each condition is shown at all, and where the denoiser sees it."""
        shares = self.config.drop_condition, self.config.drop_both
        return draw_hidden(self.conditions, shares, key, count)

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Returns the last steps' divergence, or of kind flow the velocity's error at four times.

        See objective.last_steps_kl and flow_objective.flow_diagnosis.
        """
        batch = jax.tree.map(lambda leaf: leaf[:_DIAGNOSED], dict(batch))
        noise_key, condition_key = jax.random.split(key)
        x0 = self.encoded(frozen, batch)
        batch |= self.of_target(batch, condition_key)
        process, denoise = self.networks(params, frozen, batch)
        if self.flow is not None:
            times = jnp.ones(x0.shape[:1], jnp.int32)  # it looks at times of its own
            keep = jnp.ones(x0.shape[:1], bool)
            draw = objective.Draw(x0, times, jax.random.normal(noise_key, x0.shape), keep)
            return flow_objective.flow_diagnosis(self.config, process, denoise, draw)
        return objective.last_steps_kl(process, denoise, x0, noise_key)

    # -- the two networks as functions ------------------------------------------------------------

    def networks(self, params: Params, frozen: Any, batch: Batch) -> tuple[Process, Denoise]:
        """Returns the process with its relation, and the denoiser, for a batch's conditions.

        batch: the arrays of `sampled_shapes`.
        """
        return self._functions(params, frozen, self._given(params, frozen, batch))

    def _given(
        self, params: Params, frozen: Any, batch: Batch, known: Mapping[str, Given] | None = None
    ) -> dict[str, Given]:
        """Returns what the conditions give the networks, by their names; known: not made anew."""
        own = params.get("conditions", {})
        return encode_all(self.conditions, own, frozen, batch, known)

    def _functions(
        self, params: Params, frozen: Any, given: Mapping[str, Given]
    ) -> tuple[Process, Denoise]:
        droppable = [condition.name for condition in self.conditions if condition.droppable]
        weights = self.denoiser_weights(params)

        def denoise(x: jax.Array, t: jax.Array, keep: Keep) -> jax.Array:
            keep = keep if isinstance(keep, Mapping) else dict.fromkeys(droppable, keep)
            # One by one: a tree's dicts come back sorted, and tokens are attended to in order.
            matched = {name: match_batch(each, x.shape[0]) for name, each in given.items()}
            inputs = denoiser_inputs(matched, keep)
            placed = (x, self._told(t.astype(jnp.float32)))
            read = self.controlled(params, frozen, placed, self.denoiser_reads(inputs))
            return self.denoiser.apply({"params": weights}, *placed, **read)

        bounds = self.space.bounds
        if self.flow is not None:
            own = params.get("relation", {})
            path, prediction = self.schedule, self.config.prediction
            return self.flow.process(path, prediction, own, given, bounds), denoise
        relation = self._relation_of(params, frozen, given)
        return Process(self.schedule, self.config.prediction, relation, bounds), denoise

    def _relation_of(
        self, params: Params, frozen: Any, given: Mapping[str, Given]
    ) -> Relation | None:
        """Returns relation(x0, times) -> r(x0, c, t) for each of the times; None if no adapter."""
        if self.adapter is None:
            scale = self.config.scaled_relation
            return (lambda x0, times: (scale * x0,) * len(times)) if scale else None
        read = adapter_reads(given, self.config.adapter_condition)

        def relation(x0: jax.Array, times: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            tokens = self._image_tokens(frozen, x0)
            return tuple(
                self.adapter.apply({"params": params["adapter"]}, x0, t, tokens, *read)
                for t in times
            )

        return relation

    def _image_tokens(self, frozen: Any, x0: jax.Array) -> jax.Array | None:
        """Returns CLIP's tokens (B, 1 + g*g, D) of x0, differentiable in it; None without CLIP."""
        encoder = self.image_encoder
        if encoder is None:
            return None
        return encoder.tokens(frozen[encoder.identity], self.space_in(frozen).pixels(x0))

    def attention_maps(self, params: Params, frozen: Any, batch: Batch, t: int) -> jax.Array:
        """Returns the adapter's maps (blocks, B, heads, queries, L) over the batch's pictures."""
        x0 = self.encoded(frozen, batch)
        time = jnp.full(x0.shape[:1], t, jnp.float32)
        inputs = (x0, time, self._image_tokens(frozen, x0))
        given = self._given(params, frozen, batch)
        read = adapter_reads(given, self.config.adapter_condition)
        adapter = {"params": params["adapter"]}
        return self.adapter.apply(adapter, *inputs, *read, return_maps=True)[1]

    # -- sampling -----------------------------------------------------------------------------

    def sample(
        self,
        params: Params,
        frozen: Any,
        batch: Batch,
        keys: jax.Array,
        sampler: SamplerConfig,
    ) -> jax.Array:
        """Draws pictures (B, H, W, 3) in [-1, 1] for a batch of `sampled_shapes`. Pure.

        keys (B,): one key per picture.
        """
        networks = self.networks(params, frozen, batch)
        x0 = loop.sample(*networks, keys, self.space.shape, sampler)
        return self.space_in(frozen).decode(x0)

    def preview(self, params: Params, frozen: Any, seed: int) -> jax.Array | None:
        """Draws the preview's pictures, the same noise each time."""
        if self.preview_batch is None:
            return None
        batch = jax.tree.map(jnp.asarray, dict(self.preview_batch))
        batch |= self.of_target(batch)
        count = len(next(iter(batch.values())))
        keys = sample_keys(seed, jnp.arange(count))
        return self.sample(params, frozen, batch, keys, self.preview_sampler)


def _held(params: Params, adapter: bool) -> Params:
    """Returns the parameters, of which the adapter's, or all but these, get no gradient."""
    return jax.tree.map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if of_adapter(path) == adapter else leaf,
        params,
    )

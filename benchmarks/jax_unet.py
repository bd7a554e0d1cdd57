"""Our side of a comparison with diffusers: a U-Net's training step and guided sampling, jitted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from benchmarks.parameters import random_arrays
from benchmarks.workload import Workload
from contextdiff_jax.compilation.model_flops import model_flops
from contextdiff_jax.diffusion import marginals
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.diffusion.schedules import make_schedule
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.unet import UNet
from contextdiff_jax.parallel.programs import compiler_options
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.guidance import match_batch
from contextdiff_jax.sampling.noise import sample_keys


@dataclasses.dataclass(frozen=True)
class JaxUNet:
    """The network with random parameters, and what it is measured at."""

    work: Workload

    @property
    def module(self) -> UNet | LatentUNet:
        """The network in the compute dtype; its parameters are float32."""
        kind = LatentUNet if self.work.in_latents else UNet
        return kind(self.work.unet, dtype=jnp.dtype(self.work.dtype))

    @property
    def options(self) -> dict[str, str] | None:
        """What XLA is told."""
        return compiler_options(jax.default_backend())

    def _init(self, images: jax.Array, text: jax.Array) -> dict:
        return nn.unbox(self.module.init(jax.random.key(0), images, jnp.ones(1), text))["params"]

    def _call(
        self, params: dict, x: jax.Array, t: jax.Array, text: jax.Array, keep: jax.Array
    ) -> jax.Array:
        """Returns the prediction; a prompt that is not kept is zeros where none is learned."""
        if self.work.in_latents:
            text = jnp.where(keep[:, None, None], text, 0.0)
            return self.module.apply({"params": params}, x, t, text)
        return self.module.apply({"params": params}, x, t, text, keep=keep)

    def parameters(self) -> dict:
        """Returns random parameters."""
        return random_arrays(self._init, *self._inputs(1))

    def _inputs(self, batch: int) -> tuple[jax.Array, jax.Array]:
        images, text = self.work.arrays(batch)
        return jnp.asarray(images), jnp.asarray(text)

    def parameter_count(self) -> int:
        """Returns the number of parameters, allocating nothing."""
        shapes = jax.eval_shape(self._init, *self._inputs(1))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def forward_flops(self) -> int:
        """Returns the operations of one image and one call of the network."""
        return model_flops(*self.forward_pass(1))

    def forward_pass(self, batch: int) -> tuple[Any, ...]:
        """Returns a call of the network as a function, and the shapes of its arguments."""
        images, text = self._inputs(batch)
        params = jax.eval_shape(self._init, images, text)
        # Kernels hide their products.
        unet = dataclasses.replace(self.work.unet, attention_implementation="xla")
        plain = JaxUNet(dataclasses.replace(self.work, unet=unet))
        return plain._call, params, images, jnp.ones(batch), text, jnp.ones(batch, bool)

    def forward(self, batch: int) -> Callable[[], jax.Array]:
        """Returns a function that calls the network once, all prompts kept."""
        call = jax.jit(self._call, compiler_options=self.options)
        params, (images, text) = self.parameters(), self._inputs(batch)
        args = params, images, jnp.ones(batch), text, jnp.ones(batch, bool)
        return lambda: call(*args).block_until_ready()

    def training(self) -> Callable[[], float]:
        """Returns a function that does one training step and returns its loss."""
        work = self.work
        schedule = make_schedule(work.schedule, work.train_times)
        optimizer = optax.adamw(work.learning_rate, weight_decay=0.0)

        def loss(params: dict, x0: jax.Array, text: jax.Array, key: jax.Array) -> jax.Array:
            time_key, noise_key, drop_key = jax.random.split(key, 3)
            t = jax.random.randint(time_key, x0.shape[:1], 1, work.train_times + 1)
            noise = jax.random.normal(noise_key, x0.shape)
            x_t = marginals.diffuse(schedule, x0, 0.0, t, noise)
            keep = ~jax.random.bernoulli(drop_key, work.drop, x0.shape[:1])
            predicted = self._call(params, x_t, t.astype(jnp.float32), text, keep)
            return jnp.mean(jnp.square(predicted - noise))

        def step(params, state, number, x0, text):
            key = jax.random.fold_in(jax.random.key(work.seed), number)
            value, grads = jax.value_and_grad(loss)(params, x0, text, key)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, number + 1, value

        step = jax.jit(step, donate_argnums=(0, 1, 2), compiler_options=self.options)
        params = self.parameters()
        carry = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
        inputs = self._inputs(work.batch_size)

        def run() -> float:
            nonlocal carry
            *carry, value = step(*carry, *inputs)
            return float(value)

        return run

    def sampling(self, num_steps: int) -> Callable[[], jax.Array]:
        """Returns a function that draws guided samples with DDIM as one compiled program."""
        work = self.work
        schedule = make_schedule(work.schedule, work.train_times)
        sampler = SamplerConfig(
            name="ddim",
            num_steps=num_steps,
            guidance_scale=work.guidance_scale,
            guidance_space="eps",
            threshold="none" if work.in_latents else "static",
        )

        def draw(params: dict, text: jax.Array, keys: jax.Array) -> jax.Array:
            def denoise(x: jax.Array, t: jax.Array, keep: jax.Array) -> jax.Array:
                return self._call(params, x, t, match_batch(text, x.shape[0]), keep)

            shape = (work.resolution, work.resolution, work.unet.image_channels)
            return loop.sample(Process(schedule, "eps"), denoise, keys, shape, sampler)

        draw = jax.jit(draw, compiler_options=self.options)
        params = self.parameters()
        _, text = self._inputs(work.sample_batch_size)
        keys = sample_keys(work.seed, jnp.arange(work.sample_batch_size))
        return lambda: draw(params, text, keys).block_until_ready()

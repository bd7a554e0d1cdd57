"""One-shot tuning: a U-Net of clips learns one clip and its prompt (Wu et al. 2023).

It is built by generation/clip_tuning.py of a folder of Stable Diffusion and a clip, and is no task
of the config's union: it reads no data.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.tasks.clip_adapter import ClipAdapter
from contextdiff_jax.tasks.clip_control import ClipControl
from contextdiff_jax.training.task import Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, eq=False)
class ClipTask:
    """Denoises all frames of a clip at one time; every step draws the time, noise and latents.

    denoiser: with `video`. process: without a relation. mean, deviation: of the clip's latents
    (F, h, w, c), in the units of x0; deviation None where the first stage has none. context, mask:
    tokens (1, L, D) of the prompt, and which are of its words. They are frozen, encoded once.
    adapter, control: trained beside, or None; encoded: what they read that is frozen.
    """

    denoiser: LatentUNet
    process: Process
    mean: jax.Array
    deviation: jax.Array | None
    context: jax.Array
    mask: jax.Array | None = None
    adapter: ClipAdapter | None = None
    control: ClipControl | None = None
    encoded: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def frozen(self) -> dict[str, Any]:
        """The encoded clip and prompt, and what the adapter reads."""
        found: dict[str, Any] = {"mean": self.mean, "context": self.context}
        if self.adapter is not None:
            found["mask"] = self.mask
        if self.encoded:
            found["encoded"] = dict(self.encoded)
        return found if self.deviation is None else found | {"deviation": self.deviation}

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`."""
        return jax.eval_shape(lambda: self.frozen)

    def identities(self) -> dict[str, str]:
        """Nothing but what is encoded is read."""
        return {}

    def collate(self, captions: Sequence[str], warn: bool = False) -> dict[str, np.ndarray]:
        """No captions are read."""
        return {}

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """No batch is read: the clip is frozen."""
        return {}

    def init(self, key: jax.Array) -> Params:
        """Returns {"denoiser": ..., "adapter": ..., "control": ...}, boxed with logical names."""
        frames = self.denoiser.video.frames
        x = jnp.zeros((frames, *self.mean.shape[1:]))
        context = jnp.zeros((frames, *self.context.shape[1:]))
        params = {"denoiser": self.denoiser.init(key, x, jnp.ones(frames), context)["params"]}
        if self.adapter is not None:
            params["adapter"] = self.adapter.init(key, self.mean.shape[1:])
        if self.control is not None:
            side = self.control.sizes.reduction
            height, width, _ = self.mean.shape[1:]
            hints = jnp.zeros((frames, height * side, width * side, 3))
            module = self.control.module
            params["control"] = module.init(key, x, jnp.ones(frames), context, hints)["params"]
        return params

    def loss(
        self, params: Params, frozen: Mapping[str, Any], batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Returns the mean squared error of the prediction."""
        time_key, noise_key, latent_key = jax.random.split(key, 3)
        x0 = frozen["mean"]
        if "deviation" in frozen:
            x0 = x0 + frozen["deviation"] * jax.random.normal(latent_key, x0.shape)
        t = jax.random.randint(time_key, (), 1, self.process.num_steps + 1)
        process = self._process(params, frozen)
        [bias] = process.biases(x0, t)
        x_t = process.diffuse(x0, bias, t, jax.random.normal(noise_key, x0.shape))
        context = jnp.repeat(frozen["context"], len(x0), axis=0)
        times = jnp.full(len(x0), t, jnp.float32)
        inputs, residuals = (x_t, times, context), None
        if self.control is not None:
            residuals = self.control.residuals(params["control"], frozen["encoded"], *inputs)
        predicted = self.denoiser.apply(
            {"params": params["denoiser"]}, *inputs, residuals=residuals
        )
        target = process.target(x0, x_t, t)
        return jnp.mean(jnp.square(predicted.astype(jnp.float32) - target)), {}

    def _process(self, params: Params, frozen: Mapping[str, Any]) -> Process:
        if self.adapter is None:
            return self.process
        text = frozen["context"], frozen["mask"]
        relation = self.adapter.relation(params["adapter"], frozen["encoded"], *text)
        return dataclasses.replace(self.process, relation=relation)

    def diagnose(self, params: Params, frozen: Any, batch: Batch, key: jax.Array) -> Metrics:
        """Nothing costlier is measured."""
        return {}

    def preview(self, params: Params, frozen: Any, seed: int) -> jax.Array | None:
        """No pictures are drawn."""
        return None

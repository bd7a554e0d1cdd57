"""Pictures of prompts in the latents of a frozen first stage: Stable Diffusion.

A run trains it by its config. generation/stable_diffusion.py builds it of a published folder.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.whole_text import WholeText
from contextdiff_jax.data.latents import LATENT
from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.encoders.frozen import FrozenStage
from contextdiff_jax.networks.controlnet import ControlNet
from contextdiff_jax.networks.lora import LoRAConfig, init_lora, with_lora
from contextdiff_jax.sampling import loop
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.held import Held
from contextdiff_jax.sampling.noise import step_noise
from contextdiff_jax.spaces.latents import LatentSpace
from contextdiff_jax.tasks.diffusion import DiffusionTask
from contextdiff_jax.tasks.diffusion_config import check_width
from contextdiff_jax.tasks.latent_task_config import LatentTaskConfig
from contextdiff_jax.tasks.task_config import Parts, register
from contextdiff_jax.training.task import Batch, Params

_START, _CONTROL = "start", "control"  # their places among what is frozen
_LORA = 0x7FFFFFFE  # a stream of keys beside those of networks and conditions


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentTextToImageConfig(LatentTaskConfig):
    """Pictures of prompts, as Stable Diffusion draws them; see LatentTaskConfig."""

    conditions: ClassVar[tuple[type[Condition], ...]] = (WholeText,)

    pipeline: ClassVar[str | None] = "StableDiffusionPipeline"

    kind: Literal["latent_text_to_image"] = "latent_text_to_image"

    def encoders(self, use_adapter: bool) -> tuple[str, ...]:
        """Returns "text", and "clip" with an adapter."""
        return ("text",) + ("clip",) * use_adapter

    def build(self, parts: Parts) -> "LatentTextToImage":
        """Returns the task with the condition "text"."""
        where, encoders = f"{parts.where}.task", parts.encoders
        clip_text = encoders.clip_text() if parts.use_adapter else None
        text = WholeText(encoders.text(), clip_text=clip_text)
        check_width(
            f"{where}.latent_unet.context_dim", self.latent_unet.context_dim, text.text.width
        )
        if clip_text is not None:
            check_width(f"{where}.adapter.text_dim", self.adapter.text_dim, clip_text.width)
        return LatentTextToImage(conditions=(text,), **self.latent_parts(parts))


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """A picture that all pictures of a task start from.

    picture: uint8 (H, W, 3). strength: share in (0, 1] of the steps that are taken; the first ones
    are left out, and the picture stands in their place, noisy. free: bool (H, W), False where it
    stays as it is; None draws all of it anew.
    """

    picture: np.ndarray
    strength: float
    free: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what a compiled program reads."""
        found = {"picture": self.picture}
        return found if self.free is None else found | {"free": self.free}

    def described(self) -> Any:
        """Returns what tells it from others; repr tells it."""
        return self.strength, self.free is None, _digest(self.arrays())

    def skipped(self, num_steps: int) -> int:
        """Returns how many steps are left out. Raises ValueError where none is left."""
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength = {self.strength}: must be above 0 and at most 1")
        taken = int(num_steps * self.strength)  # as diffusers rounds
        if not taken:
            raise ValueError(
                f"strength = {self.strength}: must be at least {1 / num_steps:g}, one of the "
                f"{num_steps} steps"
            )
        return num_steps - taken


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """A picture that all pictures of a task follow, through a control branch.

    branch: the network; its parameters are params["control"]. picture: uint8 (H, W, 3), as large
    as what is drawn. scale: factor on the residuals; 0 is no control. identity: of the weights.
    """

    branch: ControlNet
    picture: np.ndarray
    scale: float
    identity: str

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what a compiled program reads."""
        return {"picture": self.picture, "scale": np.array(self.scale, np.float32)}

    def described(self) -> Any:
        """Returns what tells it from others beside its weights; repr tells it."""
        return self.branch.hint_channels, self.scale, _digest(self.arrays())

    def residuals(self, params: Params, arrays: Batch, *inputs: jax.Array) -> list[jax.Array]:
        """Returns what the branch adds to the denoiser, for its x, t and context.

        arrays: of `arrays`, so that another scale is no other program.
        """
        hint = arrays["picture"][None].astype(jnp.float32) / 255
        hint = jnp.broadcast_to(hint, (inputs[0].shape[0], *hint.shape[1:]))
        found = self.branch.apply({"params": params}, *inputs, hint)
        return [(arrays["scale"] * each).astype(each.dtype) for each in found]


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(f"{array.shape}\n".encode() + array.tobytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentTextToImage(DiffusionTask):
    """A DiffusionTask whose space is a LatentSpace, and whose denoiser a LatentUNet.

    conditions: those whose input "null" stands for no condition, of Stable Diffusion WholeText;
    others have no null token here. first_stage: the space's own, among the frozen encoders.
    decoder: a tiny one of the same latents, by which CLIP sees the estimate of x0; None for the
    first stage. lora: its updates are a network of their own, "lora"; None for none.
    start: a picture to start from; None starts from noise. control: a picture to follow.
    """

    first_stage: FrozenStage
    decoder: FrozenStage | None = None
    lora: LoRAConfig | None = None
    start: Start | None = None
    control: Control | None = None

    def _pictures(self) -> dict[str, Start | Control]:
        """The pictures that all drawn ones share, by their places among what is frozen."""
        found = {_START: self.start, _CONTROL: self.control}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def frozen(self) -> Any:
        """What the programs read beside parameters: frozen encoders, start and control."""
        return super().frozen | {name: each.arrays() for name, each in self._pictures().items()}

    def boxed_frozen(self) -> Any:
        """Returns the shapes of `frozen`, boxed with logical axis names where there are some."""
        pictures = self._pictures().items()
        return super().boxed_frozen() | {
            name: jax.eval_shape(each.arrays) for name, each in pictures
        }

    def encoders(self) -> dict[str, Any]:
        """Returns the frozen encoders that are loaded, the first stage among them."""
        own = {"first_stage": self.first_stage, "decoder": self.decoder}
        return {name: each for name, each in own.items() if each} | super().encoders()

    def identities(self) -> dict[str, str]:
        """Returns which weights and vocabularies serve."""
        own = {"first_stage": self.first_stage, "decoder": self.decoder}
        found = {name: each.identity for name, each in own.items() if each is not None}
        if self.control is not None:
            found[_CONTROL] = self.control.identity
        return super().identities() | found

    def without_adapter(self) -> "LatentTextToImage":
        """Returns the task with the adapter and its own encoders left out."""
        space = dataclasses.replace(self.space, cheap=None)
        return dataclasses.replace(super().without_adapter(), decoder=None, space=space)

    def space_in(self, frozen: Any) -> LatentSpace:
        """Returns the space with its parameters."""
        params = {"stage": frozen[self.first_stage.identity]}
        if self.decoder is not None:
            params["cheap"] = frozen[self.decoder.identity]
        return self.space.bind(params)

    def encoded(self, frozen: Any, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """Returns x0 of a batch of pictures, or of stored latents, where it has those."""
        if LATENT not in batch:
            return super().encoded(frozen, batch, key)
        stored, channels = batch[LATENT].astype(jnp.float32), self.space.shape[-1]
        variances = stored[..., channels:] if stored.shape[-1] > channels else None
        return self.space.drawn(stored[..., :channels], variances, key)

    def stored_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a training batch of latents that were computed before."""
        batch = self.batch_shapes(batch_size)

        def moments(frozen: Any, images: jax.Array) -> tuple[jax.Array, jax.Array | None]:
            return self.space_in(frozen).moments(images)

        parts = jax.tree.leaves(jax.eval_shape(moments, self.frozen, batch["image"]))
        mean, channels = parts[0], sum(part.shape[-1] for part in parts)
        none = jax.ShapeDtypeStruct((batch_size, 0, 0, 3), jnp.uint8)
        latent = jax.ShapeDtypeStruct((*mean.shape[:-1], channels), jnp.bfloat16)
        return batch | {"image": none, LATENT: latent}

    def denoiser_reads(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the context: the prompts' tokens, or those of the negative one."""
        tokens, keep = inputs["text"], inputs.get("keep")
        if keep is not None:
            tokens = jnp.where(keep[:, None, None], tokens, inputs["null"])
        return {"context": tokens}

    def denoiser_weights(self, params: Params) -> Params:
        """Returns the denoiser's parameters, with their updates where there are some."""
        if self.lora is None:
            return params["denoiser"]
        return with_lora(params["denoiser"], params["lora"], self.lora.scale)

    def init(self, key: jax.Array) -> Params:
        """Returns what DiffusionTask does, and "lora" where there are updates."""
        params = super().init(key)
        if self.lora is None:
            return params
        own = jax.random.fold_in(key, _LORA)
        return params | {"lora": init_lora(self.lora, params["denoiser"], own)}

    def controlled(
        self,
        params: Params,
        frozen: Any,
        placed: tuple[jax.Array, jax.Array],
        read: Mapping[str, jax.Array],
    ) -> Mapping[str, Any]:
        """Returns what the denoiser reads, and what a control branch adds."""
        if self.control is None:
            return read
        branch = params[_CONTROL], frozen[_CONTROL]
        return {**read, "residuals": self.control.residuals(*branch, *placed, read["context"])}

    def described(self) -> Any:
        """Returns what decides about its pictures beside weights and encoders; repr tells it."""
        space = self.space
        ends = self.schedule.described()
        negatives = [getattr(condition, "negative", "") for condition in self.conditions]
        more = ends, *negatives, space.shape, space.normalization, space.tile, space.overlap
        more += (self.lora,)
        pictures = {name: each.described() for name, each in self._pictures().items()}
        return *super().described(), more, pictures

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
        space = self.space_in(frozen)
        process, denoise = self.networks(params, frozen, batch)
        start = {}
        if self.start is not None:
            known = space.encode(frozen[_START]["picture"][None])  # the mean: no noise of its own
            start = self._started(process, known, frozen[_START].get("free"), keys, sampler)
        return space.decode(loop.sample(process, denoise, keys, space.shape, sampler, **start))

    def _started(
        self,
        process: Process,
        known: jax.Array,
        free: jax.Array | None,
        keys: jax.Array,
        sampler: SamplerConfig,
    ) -> dict[str, Any]:
        """Returns what `loop.sample` is given to start from the latents `known` (1, h, w, c)."""
        skipped = self.start.skipped(sampler.num_steps)
        times = sampler.timesteps(process.schedule)
        noise = step_noise(keys, 0, self.space.shape)
        known = jnp.broadcast_to(known, noise.shape)
        x = process.diffuse(known, 0.0, jnp.asarray(times[skipped]), noise)
        if free is None:
            return {"x_init": x, "skipped": skipped}
        # The first pixel of each latent's patch says whether it is free; whole patches are.
        factor = self.space.stage.config.reduction
        held = Held(process, known, noise, free[None, ::factor, ::factor, None], int(times[-1]))
        # Where no step is left out nothing of the picture is in what is drawn anew.
        return {"x_init": x if skipped else noise, "skipped": skipped, "control": held}

"""The two compiled programs of an edit: inversion, and drawing in lockstep with the source.

Both are one scan or two over the steps, with first stage and text encoder inside.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from contextdiff_jax.diffusion.process import Process
from contextdiff_jax.generation.editing_config import EditingConfig, FusionConfig
from contextdiff_jax.networks.attention_fusion import Fusion
from contextdiff_jax.networks.attention_masks import site_mask, word_heat
from contextdiff_jax.networks.latent_blocks import ATTENTION
from contextdiff_jax.networks.latent_unet import LatentUNet, attention_sites
from contextdiff_jax.sampling.inversion import observed_inversion
from contextdiff_jax.sampling.lockstep import EDIT, NULL, SOURCE, Blend, NoBlend, observed_edit
from contextdiff_jax.spaces.pixels import from_uint8
from contextdiff_jax.tasks.clip_adapter import ClipAdapter, fit_colours
from contextdiff_jax.tasks.clip_control import ClipControl
from contextdiff_jax.tasks.latent_text_to_image import LatentTextToImage

Arrays = Mapping[str, Any]
_ASKED = (0.25, 0.5, 0.75)  # shares of T at which an adapter's attention is read


@dataclasses.dataclass(frozen=True)
class ClipNetwork:
    """The U-Net of a task for the frames of one clip, and how it is asked.

    task: of a folder of Stable Diffusion. config: of the edit. times: int32 (T + 1,), falling.
    adapter: biases both ways, each by its own prompt; None is plain diffusion. control: a branch
    that adds to the U-Net, in inversion and drawing, for all rows; None is none.

    The programs take params {"denoiser": ..., "adapter": ..., "control": ...}, and frozen: the
    task's, with an adapter CLIP's parameters and the fit of the clip's colours, and the branch's
    hints.
    """

    task: LatentTextToImage
    config: EditingConfig
    times: np.ndarray
    adapter: ClipAdapter | None = None
    control: ClipControl | None = None

    def process(self, params: Any, frozen: Any, text: jax.Array, batch: Arrays) -> Process:
        """Returns the process under a prompt: its tokens (1, L, D), and its batch."""
        relation = None
        if self.adapter is not None:
            mask = jnp.asarray(batch["text_mask"])
            relation = self.adapter.relation(params["adapter"], frozen, text, mask)
        return Process(self.task.schedule, self.task.config.prediction, relation, None)

    def colours(self, frozen: Any, frames: jax.Array) -> jax.Array:
        """Returns the fit of the colours of frames uint8 (F, H, W, 3), see tasks/clip_adapter."""
        return fit_colours(self.space(frozen).encode(frames), from_uint8(frames))

    @functools.cached_property
    def kept(self) -> tuple[str, ...]:
        """Sites whose attention to words is read. Raises ValueError where there are none."""
        wanted = self.config.read_reduction
        if wanted is None:
            return ()
        sites = [s for s in attention_sites(self.task.denoiser.config) if s.kind == "cross"]
        found = tuple(s.name for s in sites if s.reduction == wanted)
        if not found:
            known = sorted({site.reduction for site in sites})
            key = "fusion.mask_reduction" if self.config.reads_masks else "heatmap_reduction"
            raise ValueError(
                f"config.{key} = {wanted}: must be one of {', '.join(map(str, known))}, where this "
                "U-Net attends to words"
            )
        return found

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the maps of attention to words."""
        height, width, _ = self.task.space.shape
        reduction = self.config.read_reduction
        return height // reduction, width // reduction

    def predict(
        self,
        weights: tuple[Any, Any],
        x: jax.Array,
        t: jax.Array,
        contexts: tuple[jax.Array, ...],
        fusion: Fusion | None = None,
    ) -> tuple[jax.Array, Any]:
        """Returns the prediction for x (F * R, ...), and maps (F * R, Q, L), or () where unread.

        weights: params and frozen. contexts: the tokens (1, L, D) of each of a frame's R rows.
        """
        params, frozen = weights
        rows = jnp.concatenate(contexts)[None]
        context = jnp.repeat(rows, len(x) // len(contexts), axis=0).reshape(-1, *rows.shape[2:])
        denoiser = self.task.denoiser
        module = LatentUNet(denoiser.config, denoiser.dtype, self.kept, self.config.inflation)
        told: dict[str, Any] = {"fusion": fusion}
        if self.control is not None:
            told["residuals"] = self.control.residuals(params["control"], frozen, x, t, context)
        predicted, seen = module.apply(
            {"params": params["denoiser"]}, x, t, context, **told, mutable=[ATTENTION]
        )
        if not self.kept:
            return predicted, ()
        maps = [each.mean(1) for each in jax.tree.leaves(seen[ATTENTION])]
        return predicted, sum(maps) / len(maps)

    # -- the programs -------------------------------------------------------------------------

    def invert(
        self,
        params: Any,
        frozen: Any,
        frames: jax.Array,
        batches: tuple[Arrays, Arrays],
        key: jax.Array,
    ) -> tuple[jax.Array, Any]:
        """Returns path (T + 1, F, ...) of frames uint8 (F, H, W, 3), and maps (T, F, Q, L) or ().

        batches: of `collate` for one request each, the source's, and what the U-Net is told.
        """
        space = self.space(frozen)
        x0 = space.encode(frames)
        if self.config.invert_from:
            x0 = x0 + self.config.invert_from * jax.random.normal(key, x0.shape)
        (text, _), (told, _) = (self.text(frozen, batch) for batch in batches)

        def denoise(x, t, keep):
            predicted, seen = self.predict((params, frozen), x, t, (told,))
            return predicted, seen if self.config.reads_masks else ()

        process = self.process(params, frozen, text, batches[0])
        return observed_inversion(process, denoise, x0, self.times)

    def edit(
        self,
        params: Any,
        frozen: Any,
        batches: tuple[Arrays, Arrays],
        path: jax.Array,
        maps: Any,
        arrays: Arrays | None,
        words: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """Returns the edited frames (F, H, W, 3) in [-1, 1], `failed`, and heatmaps.

        failed: int32 (F,), the step after which each frame's state was no finite number; 0: none.

        batches: of the source's request and of the edit's. path, maps: of `invert`. arrays: of a
        PromptEdit; None without fusion. words (W, L): 1 for the tokens of each word of the edit
        that heatmaps (F, m, n, W) are asked of; they are of the U-Net, and of the adapter.
        """
        (source, _), (text, null) = (self.text(frozen, batch) for batch in batches)
        contexts = {SOURCE: source, EDIT: text, NULL: null}
        fusion = self.config.fusion
        controls = None if fusion is None else self._controls(arrays, maps)

        def predict(x, t, rows, control):
            told = None
            if control is not None:
                told = self._fusion(arrays, control, len(rows))
            given = tuple(contexts[row] for row in rows)
            predicted, seen = self.predict((params, frozen), x, t, given, told)
            if not self.kept:
                return predicted, ()
            return predicted, seen.reshape(-1, len(rows), *seen.shape[1:])[:, rows.index(EDIT)]

        blend = None
        if fusion is not None and fusion.blend_latents:
            blend = LatentBlend(fusion, self.mask_size, len(self.times) - 1, maps, arrays)
        blend = blend or NoBlend()
        if words is not None:
            blend = HeatSum(blend, words, self.mask_size)
        fused = 0 if fusion is None else fusion.fused_steps(len(self.times) - 1)
        x0, state = observed_edit(
            self.process(params, frozen, text, batches[1]),
            predict,
            path,
            self.times,
            scale=self.config.guidance_scale,
            controls=controls,
            fused=fused,
            blend=Finite(blend),
        )
        state, failed = state
        heat = {}
        if words is not None:
            heat["unet"] = state[1] / (len(self.times) - 1)
            if self.adapter is not None:
                heat["adapter"] = self._adapters_heat(params, frozen, text, batches[1], x0, words)
        return self.space(frozen).decode(x0), failed, heat

    def _adapters_heat(
        self, params: Any, frozen: Any, text: jax.Array, batch: Arrays, x0: jax.Array, words
    ) -> jax.Array:
        """Returns the adapter's attention to words over the frames of x0, (F, m, n, W)."""
        told = text, jnp.asarray(batch["text_mask"])
        times = [share * self.task.schedule.num_steps for share in _ASKED]
        maps = [
            self.adapter.maps(params["adapter"], frozen, *told, x0, jnp.full(len(x0), time))
            for time in times
        ]
        patch = self.adapter.module.config.patch_size
        size = x0.shape[1] // patch, x0.shape[2] // patch
        return (sum(maps) / len(maps) @ words.T).reshape(len(x0), *size, len(words))

    def coverage(self, maps: jax.Array, words: jax.Array) -> jax.Array:
        """Returns the share of each frame that may change, by fused step, (n, F)."""
        fusion = self.config.fusion
        heat = jax.vmap(lambda each: word_heat(each, words, self.mask_size))(maps)
        mask = jax.vmap(lambda each: site_mask(each, fusion.threshold, self.mask_size))(heat)
        return mask.mean((2, 3))[: fusion.fused_steps(len(self.times) - 1)]

    def space(self, frozen: Any) -> Any:
        """Returns the space of the latents with its parameters."""
        return self.task.space.bind({"stage": frozen[self.task.first_stage.identity]})

    def text(self, frozen: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens (1, L, D) of the prompt, and of the one for no condition."""
        [condition] = self.task.conditions
        given = condition.encode({}, frozen, batch)
        return given.tokens, given.inputs["null"]

    def _controls(self, arrays: Arrays, maps: Any) -> dict[str, jax.Array]:
        """Returns what each fused step is told, (n, ...)."""
        fusion, found = self.config.fusion, {"self_on": arrays["self_on"]}
        found["weight"] = arrays["weight"]
        if self.config.reads_masks and fusion.blend_self:
            words, size = arrays["source_words"], self.mask_size
            heat = jax.vmap(lambda each: word_heat(each, words, size))
            found["heat"] = heat(maps[: len(found["self_on"])])
        return found

    def _fusion(self, arrays: Arrays, control: Arrays, rows: int) -> Fusion:
        fusion = self.config.fusion
        return Fusion(
            control["self_on"],
            control.get("heat"),
            jnp.float32(fusion.threshold),
            arrays["projection"],
            arrays["alpha"],
            arrays["equalizer"],
            control["weight"],
            rows=rows,
            side=self.task.space.shape[:2],
            finest=fusion.finest,
        )


@dataclasses.dataclass(frozen=True)
class LatentBlend(NoBlend):
    """Puts the source's latents back where neither prompt's blend words are attended to.

    The maps of both prompts are summed over the steps so far; those of the edit are the ones that
    its network attends with.
    """

    fusion: FusionConfig
    size: tuple[int, int]
    steps: int
    maps: jax.Array
    arrays: Arrays

    def init(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros(self.maps.shape[1:])
        return nothing, nothing

    def after(self, x, source, observed, number, state):
        summed = state[0] + self.maps[number], state[1] + observed
        words = self.arrays["source_words"], self.arrays["edit_words"]
        free = [
            site_mask(word_heat(maps, named, self.size), self.fusion.threshold, x.shape[1:3])
            for maps, named in zip(summed, words, strict=True)
        ]
        first = self.fusion.blend_from * self.steps
        last = self.fusion.blend_until * self.steps
        active = (first < number + 1) & (number + 1 < last)
        mask = jnp.where(active, free[0] | free[1], True)[..., None]
        return jnp.where(mask, x, source), summed


@dataclasses.dataclass(frozen=True)
class Finite(NoBlend):
    """Notes after which step a frame's state is no finite number, beside another blend."""

    inner: Blend

    def init(self, x: jax.Array) -> tuple[Any, jax.Array]:
        return self.inner.init(x), jnp.zeros(len(x), jnp.int32)

    def after(self, x, source, observed, number, state):
        x, inner = self.inner.after(x, source, observed, number, state[0])
        new = (state[1] == 0) & ~jnp.isfinite(x).all(tuple(range(1, x.ndim)))
        return x, (inner, jnp.where(new, number + 1, state[1]))


@dataclasses.dataclass(frozen=True)
class HeatSum(NoBlend):
    """Sums the edit's attention to words over the steps, beside another blend.

    words: (W, L). size: (m, n) of the maps.
    """

    inner: Blend
    words: jax.Array
    size: tuple[int, int]

    def init(self, x: jax.Array) -> tuple[Any, jax.Array]:
        return self.inner.init(x), jnp.zeros((len(x), *self.size, len(self.words)))

    def after(self, x, source, observed, number, state):
        x, inner = self.inner.after(x, source, observed, number, state[0])
        heat = (observed @ self.words.T).reshape(state[1].shape)
        return x, (inner, state[1] + heat)

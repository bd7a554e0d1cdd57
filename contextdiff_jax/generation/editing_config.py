"""The configuration of an edit of a clip; configs/video_editing.py has presets."""

import dataclasses
import math
from typing import Any, Literal

import ml_collections

from contextdiff_jax.config import ConfigError, read_section
from contextdiff_jax.data.clips import ClipConfig
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig


@dataclasses.dataclass(frozen=True)
class FusionConfig:
    """What the edit takes over from the source's attention, see networks/attention_fusion.py.

    Shares are of the T steps, from the noisiest.

    mode: "refine" pairs the tokens that both prompts have; "replace" hands on what a changed word's
        predecessor is attended by, and needs prompts of equally many words.
    cross_until: share of the steps in which cross-attention is taken over.
    cross_words, cross_words_until: words of the edit for which another share holds.
    self_from, self_until: likewise of self-attention.
    equalizer_words, equalizer_values: words of the edit whose attention is multiplied.
    blend_words: words of the source prompt that name what may change; () is everything, and takes
        self-attention over everywhere.
    blend_edit_words: words of the edit that name what stands there then; read by blend_latents.
    threshold: share of a frame's largest attention to the blend words above which a position may
        change.
    blend_self: whether self-attention is left free there.
    blend_latents: whether all else is put back to the source's latents after a step, between the
        shares blend_from and blend_until.
    finest: sites whose resolution is that of the latents divided by this, or by more, take over.
    mask_reduction: likewise, at which resolution the words' attention is read.
    """

    mode: Literal["refine", "replace"] = "refine"
    cross_until: float = 0.8
    cross_words: tuple[str, ...] = ()
    cross_words_until: tuple[float, ...] = ()
    self_from: float = 0.0
    self_until: float = 0.5
    equalizer_words: tuple[str, ...] = ()
    equalizer_values: tuple[float, ...] = ()
    blend_words: tuple[str, ...] = ()
    blend_edit_words: tuple[str, ...] = ()
    threshold: float = 0.3
    blend_self: bool = True
    blend_latents: bool = False
    blend_from: float = 0.2
    blend_until: float = 0.8
    finest: int = 2
    mask_reduction: int = 4

    @property
    def reads_maps(self) -> bool:
        """Whether attention to words is read."""
        return bool(self.blend_words) and (self.blend_self or self.blend_latents)

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        shares = {key: getattr(self, key) for key in ("cross_until", "self_from", "self_until")}
        shares |= {"blend_from": self.blend_from, "blend_until": self.blend_until}
        shares |= {f"cross_words_until[{i}]": v for i, v in enumerate(self.cross_words_until)}
        for key, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{where}.{key} = {value}: must be in 0..1, a share of the steps")
        for low, high in (("self_from", "self_until"), ("blend_from", "blend_until")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{where}.{low} = {getattr(self, low)}: must be at most {high}, "
                    f"{getattr(self, high)}"
                )
        for words, values in (
            ("cross_words", "cross_words_until"),
            ("equalizer_words", "equalizer_values"),
        ):
            if len(getattr(self, words)) != len(getattr(self, values)):
                raise ValueError(
                    f"{where}.{values} has {len(getattr(self, values))} numbers: must be "
                    f"{len(getattr(self, words))}, one for each of {words}"
                )
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"{where}.threshold = {self.threshold}: must be above 0")
        if self.blend_latents and not self.blend_words:
            raise ValueError(
                f"{where}.blend_latents = True: must be False without {where}.blend_words, which "
                "name what may change"
            )
        for key in ("finest", "mask_reduction"):
            if getattr(self, key) < 1:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least 1")

    def fused_steps(self, steps: int) -> int:
        """Returns how many steps have a source row."""
        shares = (self.cross_until, *self.cross_words_until)
        crossed = max(math.floor(share * (steps + 1)) for share in shares)
        return min(steps, max(crossed, math.floor(self.self_until * steps)))


@dataclasses.dataclass(frozen=True)
class TuningConfig:
    """One-shot tuning on the clip and its prompt.

    steps: 0 for none. learning_rate, weight_decay: of AdamW. trainable: patterns of the U-Net's
        parameters, see training/parameter_names.py; the others stay as published.
    """

    steps: int = 0
    learning_rate: float = 3e-5
    weight_decay: float = 1e-2
    trainable: tuple[str, ...] = ("**/self/query", "**/cross/query", "**/temporal")

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        if not 0 <= self.steps <= 100_000:
            raise ValueError(f"{where}.steps = {self.steps}: must be 0 to 100000")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}.learning_rate = {self.learning_rate}: must be above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"{where}.weight_decay = {self.weight_decay}: must be at least 0")
        if self.steps and not self.trainable:
            raise ValueError(f"{where}.trainable = (): must have patterns where steps is above 0")


@dataclasses.dataclass(frozen=True)
class EditingConfig:
    """How a clip is edited.

    name: of the method, for the record. clip: which frames. height, width: in pixels; 0 is what the
        U-Net was trained at. video: the inflation; None draws every frame by itself. Its `frames`
        are the clip's. tuning: before the inversion.
    num_steps, guidance_scale: of DDIM. negative: the prompt that guidance leads away from.
    invert_prompt: what the inversion is told: the source's prompt, or "" (Tune-A-Video).
    invert_from: standard deviation of noise added to the latents first; flat pictures invert to
        noise of a better size from 0.04.
    fusion: None takes nothing over.
    adapter: biases both processes, each by its own prompt, with causal attention over 3 frames; its
        image_channels, image_dim and text_dim are those of the weights. It begins as zero, so it
        needs tuning. None is plain diffusion.
    control_scale: factor on what a control branch adds, ControlNet over the frames of a clip that
        the edits follow; 0 is no branch.
    heatmaps: words of the edits whose attention is drawn over the frames. heatmap_reduction: at
        which resolution it is read, as fusion.mask_reduction, which it must be where both are read.
    dtype: compute dtype. gif: whether GIFs are written too.
    """

    name: str
    clip: ClipConfig = ClipConfig()
    height: int = 0
    width: int = 0
    video: VideoConfig | None = None
    tuning: TuningConfig = TuningConfig()
    num_steps: int = 50
    guidance_scale: float = 7.5
    negative: str = ""
    invert_prompt: Literal["source", "none"] = "source"
    invert_from: float = 0.0
    fusion: FusionConfig | None = None
    adapter: AdapterConfig | None = None
    control_scale: float = 0.0
    heatmaps: tuple[str, ...] = ()
    heatmap_reduction: int = 4
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gif: bool = False

    def validate(self, where: str = "config") -> None:
        """Raises ValueError naming the first key whose value is not allowed."""
        self.clip.validate(f"{where}.clip")
        self.tuning.validate(f"{where}.tuning")
        if self.fusion is not None:
            self.fusion.validate(f"{where}.fusion")
        for key in ("height", "width"):
            if getattr(self, key) < 0:
                raise ValueError(f"{where}.{key} = {getattr(self, key)}: must be at least 0")
        if not 1 <= self.num_steps <= 1000:
            raise ValueError(f"{where}.num_steps = {self.num_steps}: must be 1 to 1000")
        if not 0 < self.guidance_scale < math.inf:
            raise ValueError(f"{where}.guidance_scale = {self.guidance_scale}: must be above 0")
        if not 0 <= self.invert_from < 1:
            raise ValueError(f"{where}.invert_from = {self.invert_from}: must be in 0..1, below 1")
        if not 0 <= self.control_scale < math.inf:
            raise ValueError(f"{where}.control_scale = {self.control_scale}: must be at least 0")
        if self.adapter is not None:
            self.adapter.validate(f"{where}.adapter")
        self._validate_heatmaps(where)
        if self.video is not None:
            self._validate_video(where)
        elif self.tuning.steps:
            raise ValueError(f"{where}.tuning.steps = {self.tuning.steps}: must be 0 without video")

    def _validate_heatmaps(self, where: str) -> None:
        key, own = f"{where}.heatmap_reduction", self.heatmap_reduction
        if own < 1:
            raise ValueError(f"{key} = {own}: must be at least 1")
        if self.heatmaps and self.reads_masks and own != self.fusion.mask_reduction:
            raise ValueError(
                f"{key} = {own}: must be {where}.fusion.mask_reduction, "
                f"{self.fusion.mask_reduction}"
            )
        for word in self.heatmaps:
            if not word.strip():
                raise ValueError(f"{where}.heatmaps has {word!r}: must be words")

    @property
    def reads_masks(self) -> bool:
        """Whether masks are made of attention to words."""
        return self.fusion is not None and self.fusion.reads_maps

    @property
    def read_reduction(self) -> int | None:
        """Factor of the resolution at which attention to words is read; None where it is not."""
        if self.reads_masks:
            return self.fusion.mask_reduction
        return self.heatmap_reduction if self.heatmaps else None

    def _validate_video(self, where: str) -> None:
        self.video.validate(f"{where}.video")
        if self.clip.count == 1 and self.video.has_parameters:
            raise ValueError(
                f"{where}.clip.count = 1: must be at least 2 with temporal parts, which see "
                "nothing in one frame; or let video be None"
            )

    @property
    def inflation(self) -> VideoConfig | None:
        """`video` for the clip's frames."""
        if self.video is None:
            return None
        return dataclasses.replace(self.video, frames=self.clip.count)


def read_editing_config(values: ml_collections.ConfigDict | dict[str, Any]) -> EditingConfig:
    """Returns the typed config, or raises ConfigError naming the key, its value and the choice."""
    values = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values
    config = read_section(EditingConfig, values, "config")
    try:
        config.validate()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return config


def editing_config_dict(config: EditingConfig) -> ml_collections.ConfigDict:
    """Returns the config as an ml_collections.ConfigDict, overridable from the command line."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))

"""How a network of pictures becomes one of clips: inflation as data.

The same 2-D network, its weights unchanged; what is added starts as the identity. Sources: Wu et
al. 2023 (Tune-A-Video), Qi et al. 2023 (FateZero), Zhao et al. 2023 (ControlVideo).
"""

import dataclasses
import re
from typing import Literal

import numpy as np

from contextdiff_jax.networks.config_checks import check_choice, check_positive

_OFFSET = re.compile(r"[+-]?\d{1,4}")
_NAMED = ("previous", "first", "mid", "last")


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """Frames of a clip that see each other. Hashable; None in its place is the 2-D network.

    Attributes:
      frames: of every clip. They are folded into the batch, the frame first: row f * R + r is frame
        f of clip r of R, so that all rows of a frame share a device.
      keys_from: frames whose positions self-attention attends to, for each frame: "previous",
        "first", "mid", "last", or an offset from the frame itself such as "-2", cut off at the
        ends. () is the frame alone.
      least_width: self-attention of narrower tokens attends to the frame alone.
      temporal: where each position attends to itself in all frames: after the MLP (Tune-A-Video,
        FateZero), or beside self-attention (ControlVideo; not in the middle); None is nowhere.
      temporal_conv: a convolution over three frames after every 3x3 one: "full", "lora" (of a low
        rank), or None.
      rank: of temporal_conv "lora"; half the channels where those are fewer.
      norm: whether the statistics of the ResBlocks' and the last norms are over all frames
        ("joint", as the originals have it) or each frame's own.
      zero_bias: whether the last bias of temporal attention begins at zero. The originals draw it,
        so that they do not begin as the identity.
    """

    frames: int = 8
    keys_from: tuple[str, ...] = ("previous", "first")
    least_width: int = 0
    temporal: Literal["after_feedforward", "parallel"] | None = "after_feedforward"
    temporal_conv: Literal["full", "lora"] | None = None
    rank: int = 160
    norm: Literal["joint", "frame"] = "joint"
    zero_bias: bool = True

    @property
    def has_parameters(self) -> bool:
        """Whether it adds parameters to the 2-D network's."""
        return self.temporal is not None or self.temporal_conv is not None

    @property
    def joint_frames(self) -> int:
        """Frames that share the statistics of a norm."""
        return self.frames if self.norm == "joint" else 1

    def attended(self, width: int) -> tuple[str, ...]:
        """Returns keys_from for tokens of a width."""
        return self.keys_from if width >= self.least_width else ()

    def validate(self, where: str = "video") -> None:
        """Raises ValueError for values that cannot work; `where` prefixes the keys."""
        check_positive(self, where, "frames", "rank")
        check_choice(self, where, "temporal", ("after_feedforward", "parallel", None))
        check_choice(self, where, "temporal_conv", ("full", "lora", None))
        check_choice(self, where, "norm", ("joint", "frame"))
        for name in self.keys_from:
            if name not in _NAMED and not _OFFSET.fullmatch(name):
                raise ValueError(
                    f"{where}.keys_from has {name!r}: {', '.join(_NAMED)} or whole numbers are "
                    "allowed."
                )


def frame_table(keys_from: tuple[str, ...], frames: int) -> np.ndarray:
    """Returns which frames each frame attends to, int32 (frames, len(keys_from))."""
    own = np.arange(frames)
    fixed = {"first": 0, "mid": (frames - 1) // 2, "last": frames - 1}
    columns = []
    for name in keys_from:
        offset = "-1" if name == "previous" else name
        column = np.full(frames, fixed[name]) if name in fixed else own + int(offset)
        columns.append(np.clip(column, 0, frames - 1))
    return np.stack(columns, axis=1).astype(np.int32)


def tune_a_video() -> VideoConfig:
    """Tune-A-Video: keys of the first and the previous frame, temporal attention."""
    return VideoConfig(keys_from=("first", "previous"))


def fatezero() -> VideoConfig:
    """FateZero's tuned network, with temporal convolutions of rank 160."""
    return VideoConfig(temporal_conv="lora")


def control_video() -> VideoConfig:
    """ControlVideo: keys of the first frame, temporal attention beside self-attention."""
    return VideoConfig(keys_from=("first",), temporal="parallel")

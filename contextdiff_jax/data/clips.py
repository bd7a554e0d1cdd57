"""Clips: some frames of a folder of pictures, or of a video file, brought to one size.

A folder needs Pillow alone; a video file PyAV (video_files.py).
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.decode import decode_upright, most_bytes
from contextdiff_jax.data.example import DamagedSample
from contextdiff_jax.data.video_files import VIDEO_SUFFIXES, read_video
from contextdiff_jax.system.json_files import read_object, read_regular

METADATA = "clip.json"  # beside frames: {"fps": 8}
DEFAULT_FPS = 8.0
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
MOST_FRAMES = 512
_LEAST_FPS, _MOST_FPS = 0.002, 1000.0  # GIFs show a frame for at most 655 s
_NUMBER = re.compile(r"(\d+)\D*$")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Which frames of a clip, and how they are brought to a size.

    start: the first frame. count: of frames. stride: from one to the next. crop: pixels cut off at
    the left, right, top and bottom, before all else. rotation: degrees counterclockwise, on top of
    what a video file says of itself. fps: of the source; 0 takes what it says, else 8.
    """

    start: int = 0
    count: int = 8
    stride: int = 1
    crop: tuple[int, ...] = (0, 0, 0, 0)
    rotation: int = 0
    fps: float = 0.0

    def validate(self, where: str) -> None:
        """Raises ValueError naming the first key below `where` whose value is not allowed."""
        for key, low, high in (
            ("start", 0, 10**6),
            ("count", 1, MOST_FRAMES),
            ("stride", 1, 10**4),
        ):
            if not low <= getattr(self, key) <= high:
                value = getattr(self, key)
                raise ValueError(f"{where}.{key} = {value}: must be {low} to {high}")
        if len(self.crop) != 4 or min(self.crop) < 0:
            raise ValueError(
                f"{where}.crop = {self.crop}: must be four numbers of at least 0, the pixels cut "
                "off at the left, right, top and bottom"
            )
        if self.rotation not in (0, 90, 180, 270):
            raise ValueError(f"{where}.rotation = {self.rotation}: must be 0, 90, 180 or 270")
        if not 0 <= self.fps <= _MOST_FPS:
            raise ValueError(f"{where}.fps = {self.fps}: must be 0 to {_MOST_FPS:g}")

    @property
    def frames(self) -> range:
        """The numbers of the frames in the source."""
        return range(self.start, self.start + self.count * self.stride, self.stride)


@dataclasses.dataclass(frozen=True)
class Clip:
    """frames: uint8 (F, H, W, 3). name: of the source. fps: of these frames, not of the source's.

    native: height and width of the source's frames.
    """

    frames: np.ndarray
    name: str
    fps: float
    native: tuple[int, int]


class ClipError(ValueError):
    """A clip that cannot be used; says which file, and why."""


def read_clip(path: str, config: ClipConfig, height: int, width: int) -> Clip:
    """Returns the frames that a config asks for, scaled to cover height x width and cut centrally.

    Raises ClipError where there is no such clip, it is too short, a frame is damaged or of another
    size, names have gaps, or PyAV is needed and missing.
    """
    source, fitted = pathlib.Path(path), _Fitted(str(path), config, (height, width))
    if source.is_dir():
        fps = _read_folder(source, config, fitted.take)
    elif source.is_file():
        if source.suffix.lower() not in VIDEO_SUFFIXES:
            raise ClipError(
                f"clip {path}: must be a folder of frames, or a video file "
                f"({', '.join(VIDEO_SUFFIXES)})"
            )
        fps, there = read_video(source, config.frames, fitted.take)
        _check_length(source, there, config)
    else:
        raise ClipError(f"clip {path}: no such folder or file")
    return fitted.clip(fps)


def count_frames(folder: pathlib.Path) -> int:
    """Returns how many frames a folder has. Raises ClipError as read_clip does."""
    return len(_numbered(folder))


def read_frames(folder: pathlib.Path, size: tuple[int, int] | None = None) -> Clip:
    """Returns all frames of a folder; size: height and width, of None they keep their own.

    Raises ClipError as read_clip does.
    """
    config = ClipConfig(count=count_frames(folder))
    fitted = _Fitted(str(folder), config, size)
    return fitted.clip(_read_folder(folder, config, fitted.take))


class _Fitted:
    """Frames, fitted as they are read: hundreds of whole ones are gigabytes.

    size: height and width, None for those of the first frame.
    """

    def __init__(self, path: str, config: ClipConfig, size: tuple[int, int] | None):
        self._path, self._config, self._size = path, config, size
        self._native: tuple[int, int] | None = None
        self._frames: list[np.ndarray] = []

    def take(self, picture: np.ndarray) -> None:
        """Adds a whole frame; raises ClipError where the config cuts nothing out of it."""
        if self._native is None:
            self._native = picture.shape[:2]
            _check_crop(self._path, self._native, self._config.crop)
        size = self._size or self._native
        self._frames.append(fit(_turned(picture, self._config), *size))

    def clip(self, fps: float) -> Clip:
        """Returns the clip of all frames; fps: of the source, 0 where it says none."""
        checked = _checked_fps(self._path, fps, self._config)
        return Clip(np.stack(self._frames), self._path, checked, self._native)


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns uint8 (H, W, 3) scaled to cover height x width (Lanczos), and cut centrally."""
    own_height, own_width = picture.shape[:2]
    if (own_height, own_width) == (height, width):
        return picture
    scale = max(height / own_height, width / own_width)
    size = max(width, round(own_width * scale)), max(height, round(own_height * scale))
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width])


def _turned(picture: np.ndarray, config: ClipConfig) -> np.ndarray:
    left, right, top, bottom = config.crop
    height, width = picture.shape[:2]
    cut = picture[top : height - bottom, left : width - right]
    return np.ascontiguousarray(np.rot90(cut, config.rotation // 90))


def _checked_fps(path: str, fps: float, config: ClipConfig) -> float:
    """Returns the rate of the frames that a config asks for; fps: what the source says, 0: none."""
    fps = (config.fps or fps or DEFAULT_FPS) / config.stride
    if not _LEAST_FPS <= fps <= _MOST_FPS:
        raise ClipError(
            f"clip {path}: {fps:g} frames a second at stride {config.stride}: must be "
            f"{_LEAST_FPS} to {_MOST_FPS:g}; clip.fps sets another rate for the source"
        )
    return fps


def _check_crop(path: str, native: tuple[int, int], crop: Sequence[int]) -> None:
    if crop[0] + crop[1] >= native[1] or crop[2] + crop[3] >= native[0]:
        raise ClipError(
            f"clip {path}: crop = {tuple(crop)} leaves nothing of {native[1]} x {native[0]} pixels"
        )


def _check_length(path: pathlib.Path, there: int, config: ClipConfig) -> None:
    needed = config.frames[-1] + 1
    if there >= needed:
        return
    left = max(there - config.start, 0)
    fitting = min(config.stride, max((left - 1) // max(config.count - 1, 1), 1))
    raise ClipError(
        f"clip {path} has {there} frames: {config.count} at stride {config.stride} from "
        f"{config.start} need {needed}; stride {fitting} gives {min(-(-left // fitting), 10**6)}"
    )


# -- folders ----------------------------------------------------------------------------------


def _read_folder(
    folder: pathlib.Path, config: ClipConfig, take: Callable[[np.ndarray], None]
) -> float:
    """Hands the frames that a config asks for to `take`, one by one; returns fps, or 0."""
    files = _numbered(folder)
    _check_length(folder, len(files), config)
    first: np.ndarray | None = None
    for number in config.frames:
        file = files[number]
        try:
            content = read_regular(file, most_bytes(DataConfig.max_pixels))
            picture = decode_upright(content, file.name, DataConfig.max_pixels)
        except DamagedSample as damaged:
            raise ClipError(f"clip {folder}: {file.name}: {damaged.reason}") from damaged
        first = picture if first is None else first
        if picture.shape != first.shape:
            raise ClipError(
                f"clip {folder}: {file.name} is {_size(picture)}, the frames before it are "
                f"{_size(first)}: all must have one size"
            )
        take(picture)
    return _folders_fps(folder)


def _numbered(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the frames in the order of their numbers, which must follow each other."""
    if not folder.is_dir():
        raise ClipError(f"clip {folder}: no such folder")
    numbers: dict[int, pathlib.Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in PICTURE_SUFFIXES:
            continue
        found = _NUMBER.search(file.stem)
        if found is None:
            raise ClipError(f"clip {folder}: {file.name} has no number in its name")
        number = int(found[1])
        if number in numbers:
            raise ClipError(
                f"clip {folder}: {file.name} and {numbers[number].name} have the same number"
            )
        numbers[number] = file
    if not numbers:
        raise ClipError(
            f"clip {folder} has no frames: files ending in {', '.join(PICTURE_SUFFIXES)}"
        )
    order = sorted(numbers)
    for before, number in zip(order, order[1:], strict=False):
        if number != before + 1:
            raise ClipError(
                f"clip {folder}: {numbers[number].name} comes after {numbers[before].name}: "
                f"{number - before - 1} frames between them are missing"
            )
    return [numbers[number] for number in order]


def _folders_fps(folder: pathlib.Path) -> float:
    """Returns what the file beside the frames says, 0 where there is none."""
    file = folder / METADATA
    if not file.is_file():
        return 0.0
    fps = read_object(file).get("fps")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= _MOST_FPS:
        raise ClipError(f"clip {folder}: fps of {METADATA} = {fps!r:.40}: must be a number above 0")
    return float(fps)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"

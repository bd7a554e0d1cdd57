"""Video files by PyAV, which is optional and imported when it is needed."""

import pathlib
import types
from collections.abc import Callable
from typing import Any

import numpy as np

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
_MOST_PIXELS = 8192 * 4320


def available() -> bool:
    """Whether PyAV is installed."""
    try:
        _av()
    except ValueError:
        return False
    return True


def _av() -> types.ModuleType:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "video files need PyAV: pip install av; or give a folder of frames"
        ) from error
    return av


class _Unusable(Exception):
    """What is wrong with a file that can be read, as the end of a sentence."""


def read_video(
    path: pathlib.Path, numbers: range, take: Callable[[np.ndarray], None]
) -> tuple[float, int]:
    """Hands the frames of these numbers to `take`, one by one, upright, uint8 (H, W, 3).

    Returns fps (0 where unknown), and how many frames there are, as far as was read: where that is
    not above the last of `numbers`, it is all. Raises ValueError, with the path and the reason, for
    a file that cannot be read, without pictures, or where PyAV is missing, and what `take` raises.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                sound = ", only sound" * bool(container.streams.audio)
                raise _Unusable(f"has no pictures{sound}")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0)
            there, shape = 0, None
            for there, frame in enumerate(container.decode(stream), 1):  # noqa: B007
                if frame.width * frame.height > _MOST_PIXELS:
                    raise _Unusable(f"has a frame of {frame.width} x {frame.height}, too large")
                if there - 1 in numbers:
                    pixels = upright(frame)
                    if shape not in (None, pixels.shape):
                        raise _Unusable(f"changes its size at frame {there - 1}")
                    shape = pixels.shape
                    take(pixels)
                if there > numbers[-1]:
                    break
    except _Unusable as error:
        raise ValueError(f"clip {path} {error}") from error
    except (av.error.FFmpegError, OSError, RuntimeError, IndexError) as error:
        raise _unreadable(path, error) from error
    if not there:
        raise ValueError(f"clip {path} has no frames")
    return fps, there


def _unreadable(path: pathlib.Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"clip {path} cannot be read as a video: {reason}")


def upright(frame: Any) -> np.ndarray:
    """Returns the pixels of PyAV's frame, turned as its file says that they are to be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns))


def write_mp4(path: pathlib.Path, frames: np.ndarray, fps: float) -> None:
    """Writes uint8 (F, H, W, 3) as H.264; odd sides get one more row or column, their last again.

    Raises ValueError where PyAV is missing.
    """
    from fractions import Fraction

    av = _av()
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())

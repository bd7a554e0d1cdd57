"""Video files by PyAV, which is optional and imported when it is needed."""

import pathlib
import types
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


def read_video(path: pathlib.Path, numbers: range) -> tuple[list[np.ndarray], float, int]:
    """Returns the frames of these numbers, upright, uint8 (H, W, 3), fps (0 where unknown).

    The third value is how many frames there are, as far as was read: where it is not above the last
    of `numbers`, that is all. Raises ValueError, with the path and the reason, for a file that
    cannot be read, without pictures, or where PyAV is missing.
    """
    av = _av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"has no pictures{', only sound' * bool(container.streams.audio)}")
            stream = container.streams.video[0]
            fps = float(stream.average_rate or 0)
            frames, there = [], 0
            for there, frame in enumerate(container.decode(stream), 1):  # noqa: B007
                if frame.width * frame.height > _MOST_PIXELS:
                    raise ValueError(f"has a frame of {frame.width} x {frame.height}, too large")
                if there - 1 in numbers:
                    frames.append(upright(frame))
                    if frames[-1].shape != frames[0].shape:
                        raise ValueError(f"changes its size at frame {there - 1}")
                if there > numbers[-1]:
                    break
    except ValueError as error:
        if isinstance(error, av.error.FFmpegError):
            raise _unreadable(path, error) from error
        raise ValueError(f"clip {path} {error}") from error
    except (av.error.FFmpegError, OSError, RuntimeError, IndexError) as error:
        raise _unreadable(path, error) from error
    if not there:
        raise ValueError(f"clip {path} has no frames")
    return frames, fps, there


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

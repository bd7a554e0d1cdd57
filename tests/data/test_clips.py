"""Clips of folders and video files: which frames, of which size, and what is refused."""

import dataclasses
import json
import os
import tracemalloc
import types
import weakref

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data import video_files
from contextdiff_jax.data.clips import ClipConfig, read_clip, read_frames
from contextdiff_jax.data.video_files import available, upright, write_mp4

needs_av = pytest.mark.skipif(not available(), reason="PyAV is not installed")


def grey(number, height=6, width=10):
    """A frame that says its number in every pixel, left of it a column that says where left is."""
    pixels = np.full((height, width, 3), 10 * number, np.uint8)
    pixels[:, 0] = 200
    return pixels


def write(folder, numbers, name="{:03d}.png", **size):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(grey(number, **size)).save(folder / name.format(number))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "clip", range(20))


def test_the_frames_asked_for(folder):
    clip = read_clip(folder, ClipConfig(start=2, count=4, stride=3, fps=12), 6, 10)
    assert clip.frames[:, 3, 5, 0].tolist() == [20, 50, 80, 110]
    assert clip.fps == 4 and clip.native == (6, 10)
    np.testing.assert_array_equal(clip.frames[1], grey(5))


def test_names_are_ordered_by_their_numbers_and_fps_is_read(tmp_path):
    path = write(tmp_path / "clip", range(8, 12), "frame{}.png")
    (tmp_path / "clip" / "clip.json").write_text(json.dumps({"fps": 25}))
    clip = read_clip(path, ClipConfig(count=4), 6, 10)
    assert clip.frames[:, 3, 5, 0].tolist() == [80, 90, 100, 110]
    assert clip.fps == 25


def test_one_whole_frame_is_held_at_a_time(tmp_path):
    frames = np.zeros((24, 256, 320, 3), np.uint8)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    read_clip(str(tmp_path), ClipConfig(count=1), 16, 16)  # imports
    tracemalloc.start()
    clip = read_clip(str(tmp_path), ClipConfig(count=24), 16, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.frames.shape == (24, 16, 16, 3) and clip.native == (256, 320)
    assert peak < 6 * frames[0].nbytes, peak / frames[0].nbytes


@pytest.mark.skipif(not available(), reason="PyAV is not installed")
def test_one_whole_frame_of_a_film_is_held_at_a_time(tmp_path, monkeypatch):
    write_mp4(tmp_path / "clip.mp4", np.zeros((12, 64, 64, 3), np.uint8), 8.0)
    seen = []

    def watched(frame):
        assert sum(other() is not None for other in seen) <= 1
        pixels = upright(frame)
        seen.append(weakref.ref(pixels))
        return pixels

    monkeypatch.setattr(video_files, "upright", watched)
    read_clip(str(tmp_path / "clip.mp4"), ClipConfig(count=12), 16, 16)
    assert len(seen) == 12


def test_crop_then_rotation_then_size_as_pil(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    (tmp_path / "c").mkdir()
    Image.fromarray(pixels).save(tmp_path / "c" / "0.png")
    config = ClipConfig(count=1, crop=(4, 6, 2, 8), rotation=90)
    got = read_clip(str(tmp_path / "c"), config, 15, 8).frames[0]
    turned = Image.fromarray(pixels[2:22, 4:34]).transpose(Image.Transpose.ROTATE_90)
    resized = turned.resize((10, 15), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(got, np.asarray(resized)[:, 1:9])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (ClipConfig(count=24, stride=2), "has 20 frames: 24 at stride 2 from 0 need 47; stride 1"),
        (ClipConfig(count=8, stride=4, start=1), "8 at stride 4 from 1 need 30; stride 2 gives 10"),
        (ClipConfig(crop=(5, 5, 0, 0)), r"crop = \(5, 5, 0, 0\) leaves nothing of 10 x 6"),
    ],
)
def test_what_the_clip_does_not_have_is_refused(config, reason, folder):
    with pytest.raises(ValueError, match=reason):
        read_clip(folder, config, 6, 10)


def test_the_first_odd_frame_is_named(folder, tmp_path):
    (tmp_path / "clip" / "012.png").unlink()
    with pytest.raises(ValueError, match="013.png comes after 011.png: 1 frames"):
        read_clip(folder, ClipConfig(), 6, 10)
    Image.fromarray(grey(0, 6, 12)).save(tmp_path / "clip" / "012.png")
    with pytest.raises(ValueError, match="012.png is 12 x 6, the frames before it are 10 x 6"):
        read_clip(folder, ClipConfig(count=16), 6, 10)
    (tmp_path / "clip" / "003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="003.png: no usable image"):
        read_clip(folder, ClipConfig(), 6, 10)
    Image.fromarray(grey(0)).save(tmp_path / "clip" / "cover.png")
    with pytest.raises(ValueError, match="cover.png has no number in its name"):
        read_clip(folder, ClipConfig(), 6, 10)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_frame_that_is_no_file_is_named(make, folder, tmp_path):
    """And nothing waits for who might write into a pipe."""
    frame = tmp_path / "clip" / "003.png"
    frame.unlink()
    make(frame)
    with pytest.raises(ValueError, match="003.png' is no regular file"):
        read_clip(folder, ClipConfig(), 6, 10)


def test_what_is_no_clip_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "clip.txt").write_text("text")
    for name, reason in (
        ("nothing", "no such folder or file"),
        ("empty", "has no frames"),
        ("clip.txt", "must be a folder of frames, or a video file"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_clip(str(tmp_path / name), ClipConfig(), 6, 10)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"stride": 0}, {"rotation": 45}, {"crop": (1, 2)}, {"fps": -1.0}]
)
def test_settings_that_cannot_work_are_refused(wrong):
    [key] = wrong
    with pytest.raises(ValueError, match=rf"^clip\.{key} = "):
        ClipConfig(**wrong).validate("clip")


def test_a_rate_that_no_animation_can_have_is_refused(tmp_path):
    """Else an edit of hours would fail as it is written."""
    for number in range(2):
        Image.fromarray(grey(number, 6, 10)).save(tmp_path / f"{number}.png")
    (tmp_path / "clip.json").write_text('{"fps": 1e-9}')
    config = ClipConfig(count=2)
    with pytest.raises(ValueError, match="1e-09 frames a second at stride 1: must be 0.002"):
        read_frames(tmp_path)
    with pytest.raises(ValueError, match="1e-09 frames a second at stride 1: must be 0.002"):
        read_clip(str(tmp_path), config, 6, 10)
    assert read_clip(str(tmp_path), dataclasses.replace(config, fps=4.0), 6, 10).fps == 4


def test_without_pyav_a_video_says_what_to_do(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="pip install av; or give a folder of frames"):
        read_clip(str(tmp_path / "clip.mp4"), ClipConfig(), 6, 10)


@needs_av
def test_a_film_comes_back_and_odd_sides_are_filled(tmp_path):
    frames = np.stack([grey(number, 33, 47) for number in range(12)])
    write_mp4(tmp_path / "clip.mp4", frames, 12.5)
    clip = read_clip(str(tmp_path / "clip.mp4"), ClipConfig(start=1, count=4, stride=3), 34, 48)
    assert clip.native == (34, 48) and clip.fps == pytest.approx(12.5 / 3)
    np.testing.assert_allclose(clip.frames[:, 17, 20, 0], [10, 40, 70, 100], atol=6)
    with pytest.raises(ValueError, match="has 12 frames: 8 at stride 2 from 0 need 15"):
        read_clip(str(tmp_path / "clip.mp4"), ClipConfig(stride=2), 34, 48)


@needs_av
@pytest.mark.parametrize(("data", "reason"), [(b"", "cannot be read"), (b"x" * 999, "cannot be")])
def test_a_broken_film_is_refused(data, reason, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(data)
    with pytest.raises(ValueError, match=reason):
        read_clip(str(tmp_path / "clip.mp4"), ClipConfig(), 6, 10)


@pytest.mark.parametrize(
    ("rotation", "turn"), [(90, "ROTATE_90"), (-90, "ROTATE_270"), (180, "ROTATE_180")]
)
def test_frames_are_turned_as_the_file_says(rotation, turn):
    """PyAV gives degrees counterclockwise."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)
    frame = types.SimpleNamespace(rotation=rotation, to_ndarray=lambda format: pixels)
    expected = Image.fromarray(pixels).transpose(getattr(Image.Transpose, turn))
    np.testing.assert_array_equal(upright(frame), expected)


@needs_av
def test_sound_alone_is_refused(tmp_path):
    import av

    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="clip.mp4 has no pictures, only sound"):
        read_clip(str(tmp_path / "clip.mp4"), ClipConfig(), 6, 10)


def test_a_real_clip(shared_data):
    clip = read_clip(str(shared_data("video/open/bunny")), ClipConfig(count=3, stride=2), 64, 64)
    assert clip.frames.shape == (3, 64, 64, 3) and clip.native == (512, 512)
    assert clip.frames.std() > 20

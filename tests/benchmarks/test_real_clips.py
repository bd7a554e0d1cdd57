"""Real clips drawn again from their inversions: what is read, the base's config, the table."""

import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from benchmarks import clip_base, real_clips
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.runs.validation import validate

FLAGS = ["--output=x", "--first_stage=y"]


@pytest.fixture
def clips(tmp_path):
    """Two clips of three frames, of one shade each."""
    rows = []
    for name, shade in (("dark", 40), ("light", 200)):
        folder = tmp_path / "clips" / "open" / name
        folder.mkdir(parents=True)
        for number in range(3):
            frame = np.full((144, 160, 3), shade + number, np.uint8)
            Image.fromarray(frame).save(folder / f"{number:03d}.png")
        rows.append({"clip": f"open/{name}", "prompt": f"a {name} wall", "fps": 5})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "clips/clips.jsonl").write_text(lines)
    return tmp_path / "clips"


def parse(*flags):
    return real_clips.parse([*FLAGS, *map(str, flags)])


def test_frames_are_an_image_folder_with_the_prompts(clips, tmp_path):
    found = real_clips.read_clips(parse(f"--clips={clips}", "--frames=2"))
    assert [(clip.name, prompt) for clip, prompt in found] == [
        ("dark", "a dark wall"),
        ("light", "a light wall"),
    ]
    assert found[1][0].frames.shape == (2, 128, 128, 3)
    assert [frame[0, 0, 0] for frame in found[1][0].frames] == [200, 202]
    folder = epath.Path(tmp_path / "pictures")
    real_clips.write_pictures(folder, found)
    source = open_source(DataConfig(source="folder", path=str(folder), resolution=128))
    assert len(source) == 4
    assert source[3].captions == ("a light wall",) and source[3].image[0, 0, 0] == 202


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"clip": "open/dark"}', "line 3: must have the texts clip and prompt"),
        ('{"clip": "open/dark"', "line 3: must have the texts clip and prompt"),
        ("[1]", "line 3: must have the texts clip and prompt"),
        ('{"clip": "closed/dark", "prompt": ""}', "line 3: a second clip 'dark': must be one"),
    ],
)
def test_lines_that_are_no_clips_are_named(line, sentence, clips):
    with (clips / "clips.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=sentence):
        real_clips.read_clips(parse(f"--clips={clips}", "--frames=2"))


def test_the_base_reads_latents_normalized_by_their_statistics(clips, tmp_path):
    stage = tmp_path / "pixels"
    clip_base.write_pixel_stage(epath.Path(stage))
    args = real_clips.parse([f"--clips={clips}", f"--first_stage={stage}", "--output=x"])
    folder = epath.Path(tmp_path / "pictures")
    args.frames = 2
    real_clips.write_pictures(folder, real_clips.read_clips(args))
    config = real_clips.real_config(folder, args)
    config = real_clips.with_stored_latents(config, epath.Path(tmp_path / "latents"))
    validate(config)
    base = config.runs[clip_base.BASE]
    shades = np.array([40, 42, 200, 202]) / 127.5 - 1  # of every pixel of a frame
    assert base.task.first_stage.mean == pytest.approx([shades.mean()] * 3, abs=1e-4)
    assert base.task.first_stage.std == pytest.approx([shades.std()] * 3, abs=1e-4)
    assert base.task.latent_unet.image_channels == 3
    assert base.data.latents == str(tmp_path / "latents")


@pytest.mark.parametrize("method", real_clips.ROWS)
def test_every_method_is_a_config_that_is_allowed(method):
    config = real_clips.editing_config(method, 3.0, parse("--clips=x", "--tuning_steps=7"))
    config.validate()
    assert (config.adapter is not None) == method.endswith("_adapter")
    assert config.tuning.steps == (0 if method in ("per_frame", "fatezero") else 7)
    assert (config.fusion is not None) == method.startswith("fatezero")


def test_what_is_there_is_not_drawn_again_nor_taken_for_another_call(clips, tmp_path):
    args = parse(f"--clips={clips}", "--frames=2", f"--output={tmp_path}")
    found = real_clips.read_clips(args)
    kept = {clip.name: clip.frames + 1 for clip, _ in found}
    bench = real_clips.Bench(None, None, args, kept)
    first = real_clips.measured(bench, real_clips.FIRST_STAGE, found)
    kept.clear()
    assert first == real_clips.measured(bench, real_clips.FIRST_STAGE, found)
    expected = 20 * np.log10(255)  # one grey level off
    assert [row["round trip"] for row in first] == pytest.approx([expected] * 2)
    assert [row["flicker"] for row in first] == [0, 0]
    assert Image.open(tmp_path / "first stage/dark.png").size == (2 * 128, 2 * 128)
    args = parse(f"--output={tmp_path}", "--clips=x", "--frames=3")
    other = real_clips.Bench(None, None, args, {})
    with pytest.raises(ValueError, match=r"dark\.json is of another call"):
        real_clips.measured(other, real_clips.FIRST_STAGE, found)


def test_the_table_has_mean_and_range_of_the_clips():
    tuned = [
        {"round trip": 20.0, "tuning error before": 0.5, "tuning error after": 0.1},
        {"round trip": 30.0, "tuning error before": 0.7, "tuning error after": 0.3},
    ]
    *_, line = real_clips.summary({"tune_a_video": tuned}).splitlines()
    assert line == "| tune_a_video | 0.6 -> 0.2 | 25 (20 to 30) |  |  |"


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--methods=controlvideo", "--methods = 'controlvideo': must be one of per_frame"),
        ("--side=100", "--side = 100: must be 128 or 256"),
    ],
)
def test_options_that_are_not_allowed_are_named(flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse("--clips=x", flag)

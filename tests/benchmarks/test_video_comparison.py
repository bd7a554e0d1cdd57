"""The comparison of methods on rendered clips: its options, its base, its table. Nothing trains."""

import json
import types

import jax
import numpy as np
import pytest
from etils import epath
from flax import linen as nn

from benchmarks import clip_base, clip_control, video_comparison
from benchmarks.video_comparison import (
    COLUMNS,
    METHODS,
    Row,
    editing_config,
    parse,
    rows_of,
    summary,
)
from contextdiff_jax.data.scenes_clips import make_clip
from contextdiff_jax.encoders.controlnet_weights import (
    ControlNetConfig,
    abstract_controlnet,
    load_controlnet,
    read_controlnet,
)
from contextdiff_jax.encoders.latent_weights import first_stage, load_first_stage
from contextdiff_jax.tasks.contrastive import ENCODER_FOLDER


def test_latents_of_the_base_are_its_pixels(tmp_path):
    folder = epath.Path(tmp_path / "pixels")
    clip_base.write_pixel_stage(folder)
    config, params = load_first_stage(folder)
    apply = jax.jit(first_stage(config).apply, static_argnames="method")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    latents, variance = apply({"params": params}, pixels, method="encode")
    np.testing.assert_allclose(latents, pixels, atol=1e-6)
    assert variance is None
    back = apply({"params": params}, latents, method="decode")
    assert np.abs(back - pixels).max() < 2 / 127.5


def test_the_base_is_a_config_that_can_be_trained(tmp_path):
    from contextdiff_jax.runs.validation import validate

    for side in (16, 32):
        folder = epath.Path(tmp_path / str(side))
        clip_base.write_pixel_stage(folder)
        validate(clip_base.base_config(folder, 0, side, 10))
        validate(clip_control.control_config(folder, 0, side, (10, 10)))


def test_edges_are_where_neighbours_differ_and_have_no_colour():
    picture = np.full((2, 5, 6, 3), 240, np.uint8)
    picture[0, 1:3, 2:4, 2] = 100  # a square in one channel
    picture[1, 0, 0] -= 30  # too little
    found = np.asarray(clip_control.edges(picture))
    assert found.dtype == np.uint8 and (found == found[..., :1]).all()
    expected = np.zeros((5, 6), bool)
    expected[0, 2:4] = expected[2, 2:4] = True  # above, and its last row
    expected[1:3, 1] = expected[1:3, 3] = True
    np.testing.assert_array_equal(found[0, ..., 0] == 255, expected)
    assert not found[1].any()


def test_the_branch_is_a_folder_of_controlnet(tmp_path):
    """Every weight is found again under diffusers' name, and the sizes fit the base."""
    config = clip_control.control_config(epath.Path("pixels"), 0, 16, (10, 10))
    task = config.runs[clip_control.CONTROL].task
    sizes = ControlNetConfig(task.latent_unet, clip_control.HINT_CHANNELS)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        nn.unbox(abstract_controlnet(sizes)),
    )
    folder = epath.Path(tmp_path)
    assert not task.is_finished(folder)
    task.finish(None, {clip_control.CONTROL: weights}, folder)
    assert task.is_finished(folder)
    written = folder / "controlnet"
    assert read_controlnet(written, task.latent_unet).hint_channels == clip_control.HINT_CHANNELS
    jax.tree.map(np.testing.assert_array_equal, load_controlnet(written, sizes), weights)
    task.go_on(folder)
    assert not task.is_finished(folder)


def test_clip_is_read_where_its_run_leaves_it(tmp_path, monkeypatch):
    """Nothing is trained: a finished run of CLIP has its weights in a folder of their own."""
    monkeypatch.setattr(clip_base, "train_run", lambda *args: None)
    monkeypatch.setattr(clip_base, "export_pipeline", lambda *args: None)
    cascade = types.SimpleNamespace(stages=("stage",))
    loading = types.SimpleNamespace(load=lambda folder: cascade)
    monkeypatch.setattr(clip_base, "Cascade", loading)
    stage, clip = clip_base.trained_base(epath.Path(tmp_path), 0, 16, 10)
    assert (stage, clip) == ("stage", tmp_path / clip_base.CLIP / ENCODER_FOLDER)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_config_that_is_allowed(method):
    args = parse(["--output=x", "--tuning_steps=7", "--num_steps=5"])
    [row] = [row for row in rows_of(args) if row.method == method]
    config = editing_config(row, make_clip("test", 0), args)
    config.validate()
    assert (config.adapter is not None) == method.endswith("_adapter")
    assert config.tuning.steps == (0 if method in ("per_frame", "fatezero") else 7)
    assert (config.control_scale == 1) == method.startswith("controlvideo")
    assert config.num_steps == 5


def test_several_tuning_steps_are_rows_of_their_own():
    args = parse(["--output=x", "--tuning_steps=50,200", "--methods=tune_a_video,per_frame"])
    names = [row.name for row in rows_of(args)]
    assert names == ["tune_a_video_50", "tune_a_video_200", "per_frame", "source", "target"]


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--methods=best", "--methods = 'best': must be one of per_frame"),
        ("--edits=size", "--edits = 'size': must be one of colour"),
        ("--seeds=one", "--seeds = 'one': must be whole numbers"),
        ("--frames=1", "--frames = 1: must be at least 2"),
        ("--tuning_steps=50,0", "--tuning_steps = 0: must be at least 1"),
    ],
)
def test_options_that_are_not_allowed_are_named(flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        parse(["--output=x", flag])


def test_the_table_is_of_seeds():
    """Two seeds with means 1 and 3; a figure that no edit has is left out."""
    rows = {"0": [{"text": 0.5}, {"text": 1.5}], "1": [{"text": 3.0, "flicker": 2.0}]}
    head, _, line = summary({"per_frame": rows}).splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), line[2:-2].split(" | "), strict=True))
    assert list(cells)[3:] == list(COLUMNS)
    assert cells["text"] == f"2 ± {np.std([1, 3], ddof=1):.2g}"
    assert cells["flicker"] == "2" and cells["colour"] == ""
    assert (cells["method"], cells["seeds"], cells["edits"]) == ("per_frame", "2", "3")


def test_what_nothing_changed_is_infinite_in_the_table():
    """The PSNR of the bounds outside the masks, whatever the number of seeds."""
    row = {"PSNR outside": float("inf")}
    _, _, line = summary({"source": {"0": [row, row], "1": [row]}}).splitlines()
    assert " inf " in line and "±" not in line


class OneColour(video_comparison.Bench):
    """Edits every clip to nothing, and counts how often."""

    calls = 0

    def edit(self, row, number, folder):
        type(self).calls += 1
        return {"colour": {"text": float(number)}}


def test_what_is_there_is_not_repeated_and_other_calls_are_refused(tmp_path):
    def bench(*flags):
        args = parse([f"--output={tmp_path}", "--edits=colour", *flags])
        return OneColour(0, None, None, None, None, args)

    row = Row("fatezero")
    rows = video_comparison.measured(bench("--clips=2"), row)
    assert rows == [{"text": 0.0}, {"text": 1.0}] and OneColour.calls == 2
    rows = video_comparison.measured(bench("--clips=3"), row)
    assert len(rows) == 3 and OneColour.calls == 3
    kept = json.loads((tmp_path / "0/fatezero/002.json").read_text())
    assert kept["asked"]["num_steps"] == 50
    with pytest.raises(ValueError, match="000.json is of another call: take another --output"):
        video_comparison.measured(bench("--num_steps=20"), row)

"""The comparison of methods on rendered clips: its options, its base, its table. Nothing trains."""

import json
import types

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks import clip_base, video_comparison
from benchmarks.video_comparison import COLUMNS, METHODS, editing_config, parse, summary
from contextdiff_jax.data.scenes_clips import make_clip
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
    config = editing_config(method, make_clip("test", 0), args)
    config.validate()
    assert (config.adapter is not None) == method.endswith("_adapter")
    assert config.tuning.steps == (0 if method in ("per_frame", "fatezero") else 7)
    assert config.num_steps == 5


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--methods=best", "--methods = 'best': must be one of per_frame"),
        ("--edits=size", "--edits = 'size': must be one of colour"),
        ("--seeds=one", "--seeds = 'one': must be whole numbers"),
        ("--frames=1", "--frames = 1: must be at least 2"),
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

    def edit(self, method, number, folder):
        type(self).calls += 1
        return {"colour": {"text": float(number)}}


def test_what_is_there_is_not_repeated_and_other_calls_are_refused(tmp_path):
    def bench(*flags):
        args = parse([f"--output={tmp_path}", "--edits=colour", *flags])
        return OneColour(0, None, None, None, args)

    rows = video_comparison.measured(bench("--clips=2"), "fatezero")
    assert rows == [{"text": 0.0}, {"text": 1.0}] and OneColour.calls == 2
    rows = video_comparison.measured(bench("--clips=3"), "fatezero")
    assert len(rows) == 3 and OneColour.calls == 3
    kept = json.loads((tmp_path / "0/fatezero/002.json").read_text())
    assert kept["asked"]["num_steps"] == 50
    with pytest.raises(ValueError, match="000.json is of another call: take another --output"):
        video_comparison.measured(bench("--num_steps=20"), "fatezero")

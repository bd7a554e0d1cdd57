"""Edits of a clip beside those of diffusers' modules, in two steps: agreement, refusal, figures."""

import dataclasses
import json
import os

import numpy as np
import pytest
from etils import epath

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from benchmarks import edit_vs_diffusers, torch_editor  # noqa: E402
from contextdiff_jax.data.scenes_clips import make_clip  # noqa: E402

FRAMES, STEPS = 3, 2
SMALL = [f"--frames={FRAMES}", f"--num_steps={STEPS}", "--turns=1", "--seconds=0"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core affinity here")
@pytest.mark.usefixtures("one_device", "same_threads_afterwards")
def test_command(tmp_path, capsys):
    path = tmp_path / "result.json"
    edit_vs_diffusers.main([*SMALL, "--threads=1", f"--json={path}"])
    result = json.loads(path.read_text())
    assert result["threads"] == 1 and result["versions"]["diffusers"]
    printed = capsys.readouterr().out
    for method in edit_vs_diffusers.PEERS:
        found = result[method]
        assert found["difference"] <= 2
        ours, theirs = (found["edit_seconds"][side] for side in ("ours", "diffusers"))
        assert found["ratio_of_medians"] == pytest.approx(theirs / ours)
        assert found["rates"]["ours"] == [pytest.approx(FRAMES / ours)]
    alone = result["fatezero"]
    assert list(alone["edit_seconds"]) == ["ours"] and "ratio_of_medians" not in alone
    assert all(seconds > 0 for seconds in alone["processor_seconds"].values())
    assert f"U-Net of {result['parameters']:,} parameters" in printed
    assert "compiling ours" in printed and "ours / diffusers" in printed


@pytest.mark.slow
def test_an_edit_depends_on_all_that_both_sides_must_agree_on(tmp_path):
    """Random weights that did nothing would let the comparison pass whatever either side does."""
    folder = epath.Path(tmp_path)
    torch_editor.write_model(folder, 16)
    scene = make_clip("test", 0, FRAMES)
    words = scene.caption, scene.edited("colour").caption
    asked = torch_editor.Asked(scene.render(16), *words, STEPS, 3.0)
    editor = torch_editor.TorchEditor(folder, "contiguous")
    drawn = editor.edit(asked)
    assert np.mean((drawn > 0) & (drawn < 255)) > 0.5
    for change in (
        {"frames": asked.frames[::-1].copy()},
        {"source": asked.target},
        {"target": asked.source},
        {"num_steps": STEPS + 1},
        {"guidance_scale": 2.5},
    ):
        other = editor.edit(dataclasses.replace(asked, **change))
        with pytest.raises(ValueError, match="per_frame: frames of ours .* must be at most 2"):
            edit_vs_diffusers.check_agreement("per_frame", drawn, other)
    middle = torch_editor.TorchEditor(folder, "contiguous", middle_of=FRAMES).edit(asked)
    apart = np.abs(drawn.astype(int) - middle).max(axis=(1, 2, 3))
    assert apart[1] <= 1  # the frame in the middle sees itself, as before
    assert min(apart[0], apart[2]) > 2


def test_frames_that_differ_are_not_timed(capsys):
    frames = np.full((FRAMES, 2, 2, 3), 100, np.uint8)
    other = frames.copy()
    other[1, 0, 0, 2] = 97
    edits = {"ours": lambda: frames, "diffusers": lambda: other}
    args = edit_vs_diffusers.parse(SMALL)
    with pytest.raises(ValueError, match="mid_frame: frames of ours .* differ by 3 of 255"):
        edit_vs_diffusers.measure("mid_frame", edits, args)
    assert "turn" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--frames=1", "--frames = 1: must be at least 2"),
        ("--num_steps=0", "--num_steps = 0: must be at least 1"),
        ("--turns=0", "--turns = 0: must be at least 1"),
        ("--num_steps=1001", "config.num_steps = 1001: must be 1 to 1000"),
        ("--methods=per_frame,other", "--methods = 'other': must be one of per_frame, mid_frame"),
    ],
)
def test_bad_flags_end_in_one_sentence(flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        edit_vs_diffusers.main([*SMALL, flag])

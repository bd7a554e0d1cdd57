"""ControlVideo: a ControlNet over a clip's frames, against diffusers; tuned, written, refused."""

import dataclasses
import json

import numpy as np
import pytest

from contextdiff_jax.config import ConfigError
from contextdiff_jax.data.clips import Clip, ClipConfig
from contextdiff_jax.encoders.controlnet_weights import load_controlnet
from contextdiff_jax.encoders.latent_weights import load_unet
from contextdiff_jax.encoders.video_weights import fresh_parts
from contextdiff_jax.generation import clip_tuning, stable_diffusion
from contextdiff_jax.generation.editing_config import (
    EditingConfig,
    TuningConfig,
    read_editing_config,
)
from contextdiff_jax.generation.editor import Beside, open_editor
from contextdiff_jax.generation.network_file import load_network
from contextdiff_jax.generation.video_editing import Wanted, edit_clip
from contextdiff_jax.networks.video_config import control_video
from contextdiff_jax.system.interruption import Watch
from contextdiff_jax.training.parameter_names import by_name, matches

pytestmark = pytest.mark.usefixtures("one_device")

FRAMES, SIDE, STEPS = 2, 32, 2
RNG = np.random.default_rng(3)
CLIP = Clip(RNG.integers(0, 255, (FRAMES, SIDE, SIDE, 3), np.uint8), "clip", 8.0, (SIDE, SIDE))
EDGES = Clip(RNG.integers(0, 255, (FRAMES, SIDE, SIDE, 3), np.uint8), "edges", 8.0, (SIDE, SIDE))
SOURCE, TARGET = "a red circle", "a circle of red"
PLAIN = EditingConfig(
    "per_frame",
    clip=ClipConfig(count=FRAMES),
    height=SIDE,
    width=SIDE,
    num_steps=STEPS,
    guidance_scale=3.0,
    control_scale=0.7,
)
TRAINABLE = ("**/self/out", "**/temporal", "**/temporal_out")
TUNED = dataclasses.replace(
    PLAIN,
    name="controlvideo",
    video=control_video(),
    tuning=TuningConfig(steps=4, learning_rate=1e-3, trainable=TRAINABLE),
)


@pytest.fixture(scope="module")
def folders(latent_oracles, tmp_path_factory):
    """The tiny Stable Diffusion folder, and its ControlNet's."""
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.encoders import controlnet_folder
    from tests.generation import stable_diffusion_folder

    made = tmp_path_factory.mktemp("control")
    (made / "model").mkdir()
    stable_diffusion_folder.write(made / "model")
    controlnet_folder.write(made / "branch")
    return str(made / "model"), str(made / "branch")


@pytest.mark.slow
def test_frames_without_inflation_are_diffusers(folders):
    """Inversion under the source's prompt, drawing with guidance: both with each frame's hint."""
    import diffusers
    import torch

    model, path = folders
    branch = diffusers.ControlNetModel.from_pretrained(path)
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        model, controlnet=branch, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    inverse = diffusers.DDIMInverseScheduler.from_config(config)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    inverse.set_timesteps(STEPS)
    hints = torch.from_numpy(EDGES.frames).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        pixels = torch.from_numpy(CLIP.frames).permute(0, 3, 1, 2) / 127.5 - 1
        x = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        text = pipe.encode_prompt(SOURCE, "cpu", FRAMES, False)[0]
        for t in inverse.timesteps:
            outer, middle = branch(x, t, text, hints, 0.7, return_dict=False)
            eps = pipe.unet(
                x,
                t,
                text,
                down_block_additional_residuals=outer,
                mid_block_additional_residual=middle,
            ).sample
            x = inverse.step(eps, t, x).prev_sample
    theirs = pipe(
        [TARGET] * FRAMES,
        list(hints[:, None]),
        latents=x,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        controlnet_conditioning_scale=0.7,
        output_type="np",
    ).images
    editor = open_editor(model, PLAIN, Beside(controlnet=path)).for_clip(CLIP, EDGES)
    inverted = editor.invert(CLIP, SOURCE, 0)
    np.testing.assert_allclose(np.moveaxis(inverted[0][0], -1, 1), x.numpy(), atol=1e-3)
    ours = editor.edit(inverted, SOURCE, TARGET).frames
    assert np.mean((theirs > 0) & (theirs < 1)) > 0.5
    assert np.abs(ours - 255 * theirs).max() < 2


@pytest.mark.slow
def test_the_branch_is_tuned_beside_written_and_read_again(folders, tmp_path, monkeypatch):
    model, path = folders
    editor = open_editor(model, TUNED, Beside(controlnet=path))
    wanted = Wanted(CLIP, SOURCE, (TARGET,), EDGES)
    edit_clip(editor, wanted, tmp_path, 0, Watch())
    assert json.loads((tmp_path / "manifest.json").read_text())
    before = by_name(editor.stage.params["control"])
    after = by_name(load_network(tmp_path / "tuned", "control", editor.stage.params["control"]))
    trained = [name for name in before if matches(name, TRAINABLE)]
    assert trained and all(name.endswith(("self/out/kernel", "self/out/bias")) for name in trained)
    for name in before:
        assert np.array_equal(before[name], after[name]) != (name in trained), name
    monkeypatch.setattr(clip_tuning, "tune", None)  # with --tuned nothing is tuned again
    again = open_editor(model, TUNED, Beside(tuned=str(tmp_path / "tuned"), controlnet=path))
    given = by_name(again.stage.params["control"])
    np.testing.assert_array_equal(given[trained[0]], after[trained[0]])
    other = dataclasses.replace(wanted, control=CLIP)
    with pytest.raises(ValueError, match="holds edits of something else: edits.control"):
        edit_clip(editor, other, tmp_path, 0, Watch())


def test_temporal_attention_begins_as_the_spatial_behind_zero(folders):
    sizes, params = load_unet(f"{folders[0]}/unet")
    flat = by_name(fresh_parts(params, sizes, control_video()))
    temporal = [name for name in flat if "/temporal/" in name]
    assert temporal
    for name in temporal:
        np.testing.assert_array_equal(flat[name], flat[name.replace("/temporal/", "/self/")])
    assert not any(np.any(flat[n]) for n in flat if "temporal_out" in n)
    assert not any("temporal" in name for name in by_name(_branch(folders[1], sizes)))


def _branch(path, unet):
    from contextdiff_jax.encoders.controlnet_weights import read_controlnet

    return load_controlnet(path, read_controlnet(path, unet))


def test_what_does_not_go_together_is_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "load", None)  # before the weights are read
    model, path = folders
    with pytest.raises(ValueError, match="--controlnet is missing: config.control_scale needs"):
        open_editor(model, PLAIN)
    without = dataclasses.replace(PLAIN, control_scale=0.0)
    with pytest.raises(ValueError, match="--controlnet=.*: only together with config.control"):
        open_editor(model, without, Beside(controlnet=path))
    from tests.encoders import controlnet_folder

    other = controlnet_folder.write(tmp_path / "branch", layers_per_block=2)
    with pytest.raises(ValueError, match="layers_per_block = 2: must be 1, unet/ of --model has"):
        open_editor(model, PLAIN, Beside(controlnet=str(other)))
    with pytest.raises(ConfigError, match="config.control_scale = -1.0: must be at least 0"):
        read_editing_config({"name": "x", "control_scale": -1.0})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--config.control_scale=1.0"], "--controlnet is missing: config.control_scale needs"),
        (["--config.control_scale=1.0", "--controlnet=BRANCH"], "--control is missing: config.con"),
        (["--control=edges"], "--control=edges: only together with config.control_scale"),
        (["--controlnet=no"], "--controlnet=no: no such file"),
    ],
)
def test_flags_of_control(flags, sentence, forks, tmp_path):
    asked = ["--config=configs/video_editing.py:per_frame", f"--model={tmp_path}", "--clip=x"]
    asked += ["--source_prompt=a", "--prompt=b", f"--output={tmp_path}/out"]
    refused = forks("edit", *asked, *(f.replace("BRANCH", str(tmp_path)) for f in flags))
    assert refused.returncode == 2
    assert sentence in refused.stderr.splitlines()[-1]

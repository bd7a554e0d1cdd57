"""Edits of a clip by a tiny random Stable Diffusion: against diffusers, files, refusals."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.data.clips import Clip, ClipConfig
from contextdiff_jax.generation import editor as editors
from contextdiff_jax.generation import stable_diffusion, video_editing
from contextdiff_jax.generation.editing_config import EditingConfig, FusionConfig
from contextdiff_jax.generation.editor import Beside, open_editor
from contextdiff_jax.generation.video_editing import Wanted, check_prompts, edit_clip
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.system.interruption import Watch
from contextdiff_jax.tasks.clip_adapter import colours_of, fit_colours
from tests.fixtures.tgve import write as write_tgve

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("one_device"),
]

FRAMES, STEPS, SIDE = 4, 4, 32
SOURCE, TARGET = "a red circle", "a circle of red"
PIXELS = np.random.default_rng(2).integers(0, 255, (FRAMES, 4, 4, 3), np.uint8)
PIXELS = np.kron(PIXELS, np.ones((1, 8, 8, 1), np.uint8))
CLIP = Clip(PIXELS, "clip", 8.0, (SIDE, SIDE))
PLAIN = EditingConfig(
    "per_frame",
    clip=ClipConfig(count=FRAMES),
    height=SIDE,
    width=SIDE,
    num_steps=STEPS,
    guidance_scale=3.0,
)
FUSION = FusionConfig(
    blend_words=("circle",),
    blend_edit_words=("circle",),
    blend_latents=True,
    blend_from=0.0,
    blend_until=1.0,
    threshold=0.8,
    finest=1,
    mask_reduction=2,
)
VIDEO = VideoConfig(keys_from=("mid",), temporal=None)
ADAPTER = AdapterConfig(patch_size=4, width=16, num_blocks=1, heads=2, time_width=8)
FUSED = dataclasses.replace(
    PLAIN,
    name="fatezero",
    video=VIDEO,
    fusion=FUSION,
    gif=True,
    heatmaps=("circle", "Blue"),
    heatmap_reduction=2,
)


@pytest.fixture(scope="module")
def folder(latent_oracles, tmp_path_factory):
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.generation import stable_diffusion_folder

    return str(stable_diffusion_folder.write(tmp_path_factory.mktemp("model")))


@pytest.mark.slow
def test_every_frame_by_itself_is_diffusers(folder):
    """DDIMInverseScheduler under the source's prompt, then DDIM with guidance under the edit's."""
    import diffusers
    import torch

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    config = dict(pipe.scheduler.config)
    inverse = diffusers.DDIMInverseScheduler.from_config(config)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    inverse.set_timesteps(STEPS)
    with torch.no_grad():
        pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 127.5 - 1
        x = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
        text = pipe.encode_prompt(SOURCE, "cpu", FRAMES, False)[0]
        for t in inverse.timesteps:
            eps = pipe.unet(x, t, encoder_hidden_states=text).sample
            x = inverse.step(eps, t, x).prev_sample
    call = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
    theirs = pipe([TARGET] * FRAMES, SIDE, SIDE, latents=x, **call).images
    editor = open_editor(folder, PLAIN)
    inverted = editor.invert(CLIP, SOURCE, 0)
    np.testing.assert_allclose(np.moveaxis(inverted[0][0], -1, 1), x.numpy(), atol=1e-3)
    edited = editor.edit(inverted, SOURCE, TARGET)
    ours = edited.frames
    assert edited.coverage is None and not edited.heat
    assert np.mean((theirs > 0) & (theirs < 1)) > 0.5
    assert np.abs(ours - 255 * theirs).max() < 2


@pytest.fixture(scope="module")
def edits(folder, tmp_path_factory):
    """The folder of two fused edits, and their editor."""
    device = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, device))
        editor = open_editor(folder, FUSED)
    output = tmp_path_factory.mktemp("edits")
    wanted = Wanted(CLIP, SOURCE, (TARGET, "a blue circle"))
    edit_clip(editor, wanted, output, 0, Watch())
    return output, editor, wanted


@pytest.mark.slow
def test_the_files_of_an_edit(edits):
    output, _, _ = edits
    for number in ("00", "01"):
        place = output / number
        frames = np.stack([np.asarray(Image.open(f)) for f in sorted(place.glob("frames/*.png"))])
        assert frames.shape == PIXELS.shape
        film = Image.open(place / "clip.webp")
        assert film.n_frames == FRAMES
        film.seek(2)
        np.testing.assert_array_equal(np.asarray(film.convert("RGB")), frames[2])
        assert Image.open(place / "clip.gif").n_frames == FRAMES
        beside = Image.open(place / "beside.webp")
        np.testing.assert_array_equal(np.asarray(beside.convert("RGB"))[:, :SIDE], PIXELS[0])
        record = json.loads((place / "edit.json").read_text())
        assert 0 < np.mean(record["free_of_each_frame"]) < 1
        assert record["config"]["fusion"]["threshold"] == 0.8
    first, second = ((output / n / "frames/000.png").read_bytes() for n in ("00", "01"))
    assert first != second
    np.testing.assert_array_equal(
        np.asarray(Image.open(output / "source/frames/001.png")), PIXELS[1]
    )


@pytest.mark.slow
def test_heatmaps_of_words(edits):
    """Every prompt shows those of the words that it has; all tokens together have attention 1.

    The latter of the identity edit: what is taken over for another prompt does not sum to 1.
    """
    output, editor, _ = edits
    names = [sorted(p.stem for p in (output / n / "heatmaps").glob("*.png")) for n in ("00", "01")]
    assert names == [["00_circle"], ["00_circle", "01_blue"]]
    sheet = np.asarray(Image.open(output / "00/heatmaps/00_circle.png"))
    assert sheet.shape == (2 * SIDE, FRAMES * SIDE, 3)
    frames = [np.asarray(Image.open(output / f"00/frames/{n:03d}.png")) for n in range(FRAMES)]
    np.testing.assert_array_equal(sheet[:SIDE], np.concatenate(frames, axis=1))
    record = json.loads((output / "01/edit.json").read_text())["heatmaps"]
    assert record["Blue"]["unet"]["file"] == "heatmaps/01_blue.png"
    assert 0 < record["circle"]["unet"]["least"] < record["circle"]["unet"]["largest"] < 1
    inverted = editor.invert(CLIP, SOURCE, 0)
    arrays = dataclasses.asdict(editor.changes(SOURCE, SOURCE))
    batches = editor._batch(SOURCE), editor._batch(SOURCE)
    given = (*editor._weights(), batches, *inverted, arrays)
    heat = editor._edit(*given, np.ones((1, 77), np.float32))[2]["unet"]
    np.testing.assert_allclose(heat, 1, atol=1e-5)


@pytest.mark.slow
def test_the_same_command_draws_what_is_missing(edits, monkeypatch):
    output, editor, wanted = edits
    before = (output / "01/frames/003.png").read_bytes()
    (output / "01/edit.json").unlink()
    (output / "01/frames/003.png").unlink()
    remains = [f"{place}/{'0' * 32}.tmp" for place in ("01", "01/frames", "00/heatmaps", "source")]
    for name in remains:  # as a killed writer leaves them
        (output / name).write_text("")
    kept = (output / "00/edit.json").stat().st_mtime_ns
    edit_clip(editor, wanted, output, 0, Watch())
    assert (output / "01/frames/003.png").read_bytes() == before
    assert (output / "00/edit.json").stat().st_mtime_ns == kept
    assert not list(output.rglob("*.tmp"))
    monkeypatch.setattr(editor, "invert", None)  # nothing is missing: nothing is computed
    edit_clip(editor, wanted, output, 0, Watch())
    other = dataclasses.replace(wanted, source="a blue square")
    with pytest.raises(ValueError, match="holds edits of something else: edits.source_prompt"):
        edit_clip(editor, other, output, 0, Watch())


@pytest.mark.slow
def test_where_nothing_may_change_the_edit_is_the_source(edits, tmp_path, caplog):
    """A threshold of 2 leaves nothing free: the latents are those of the source, and it is said."""
    _, editor, _ = edits
    config = dataclasses.replace(FUSED, fusion=dataclasses.replace(FUSION, threshold=2.0))
    copying = editors.Editor(editor.stage, config)
    path, maps = editor.invert(CLIP, SOURCE, 0)
    edited = copying.edit((path, maps), SOURCE, TARGET)
    frames, coverage = edited.frames, edited.coverage
    assert not np.any(coverage)
    # The last step is outside the blend's open interval: it starts from the source's state.
    space = editor.network.space(editor.stage.frozen)
    whole = np.asarray(space.decode(path[-1]))
    assert np.abs(frames / 127.5 - 1 - whole).mean() < 0.2 * np.abs(whole).mean()
    video_editing._say_what_is_odd(PIXELS, coverage, CLIP, config)
    assert "the edit equals the source in every pixel" in caplog.text


@pytest.mark.slow
def test_an_adapter_that_is_zero_changes_nothing_and_one_that_is_not_does(
    edits, folder, clip_folder
):
    """Zero, as it begins, is none (to the digit: tests/sampling/test_lockstep.py; two programs may
    round a pixel apart). Else each prompt has its own bias."""
    output, editor, _ = edits
    config = dataclasses.replace(FUSED, adapter=ADAPTER)
    biased = open_editor(folder, config, Beside(image_encoder=str(clip_folder))).for_clip(CLIP)
    path, maps = biased.invert(CLIP, SOURCE, 0)
    edited = biased.edit((path, maps), SOURCE, TARGET)
    frames = edited.frames
    assert edited.heat["adapter"].shape == (FRAMES, 2, 2, 1)  # of 8 x 8 latents in patches of 4
    assert edited.heat["unet"].shape == (FRAMES, 4, 4, 1)
    plain = editor.invert(CLIP, SOURCE, 0)[0]
    np.testing.assert_allclose(path, plain, atol=1e-5)
    for number, pixels in enumerate(frames):
        file = output / f"00/frames/{number:03d}.png"
        difference = np.abs(pixels.astype(int) - np.asarray(Image.open(file)))
        assert difference.max() <= 1 and difference.mean() < 0.01
    params = jax.tree.map(lambda leaf: leaf + 0.3, biased.stage.params["adapter"])
    other = biased.replaced(params=biased.stage.params | {"adapter": params})
    other._invert, other._edit = biased._invert, biased._edit  # the same programs
    moved, _ = other.invert(CLIP, SOURCE, 0)
    assert np.abs(np.asarray(moved - plain)).max() > 0.01
    drawn = other.edit((path, maps), SOURCE, TARGET)
    assert np.any(drawn.frames != frames)
    assert np.any(drawn.heat["adapter"] != edited.heat["adapter"])


def test_colours_of_latents_are_fitted():
    """Latents that are an affine function of the colours give these back."""
    latents = np.random.default_rng(1).normal(size=(2, 4, 4, 5)).astype(np.float32)
    mixing = 0.1 * np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)
    colours = latents @ mixing + np.float32(0.2)
    pictures = np.kron(colours, np.ones((1, 8, 8, 1), np.float32))
    got = colours_of(fit_colours(latents, pictures), latents)
    np.testing.assert_allclose(got, colours, atol=2e-3)


def test_an_adapter_needs_an_image_encoder(folder, clip_folder, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "load", None)  # before the weights are read
    config = dataclasses.replace(PLAIN, adapter=ADAPTER)
    with pytest.raises(ValueError, match="--image_encoder is missing: config.adapter needs a CLIP"):
        open_editor(folder, config)
    with pytest.raises(ValueError, match="--image_encoder=.*: only together with config.adapter"):
        open_editor(folder, PLAIN, Beside(image_encoder=str(clip_folder)))


def test_a_mask_that_is_empty_is_said(caplog):
    coverage = np.array([[0.0, 0.5], [0.0, 0.5]])
    video_editing._say_what_is_odd(PIXELS + 1, coverage, CLIP, FUSED)
    assert "empty or full; of each frame it lets change: 0.00, 0.50" in caplog.text


# -- refusals ---------------------------------------------------------------------------------


def test_empty_prompts_are_refused_and_equal_ones_said(caplog):
    for wanted in (Wanted(CLIP, " ", (TARGET,)), Wanted(CLIP, SOURCE, ("",))):
        with pytest.raises(ValueError, match="is empty: must say what"):
            wanted.check()
    Wanted(CLIP, SOURCE, (f" {SOURCE}",)).check()
    assert "is the source's prompt, nothing is edited" in caplog.text


def test_words_are_refused_before_the_weights_are_read(folder):
    wrong = FusionConfig(blend_words=("square",))
    config = dataclasses.replace(FUSED, fusion=wrong, heatmaps=())
    with pytest.raises(ValueError, match="fusion.blend_words has 'square', which is not in the pr"):
        check_prompts(folder, config, Wanted(CLIP, SOURCE, (TARGET,)))
    heated = dataclasses.replace(PLAIN, heatmaps=("red", "Blue"))
    with pytest.raises(ValueError, match="config.heatmaps has 'Blue', which is in no prompt: must"):
        check_prompts(folder, heated, Wanted(CLIP, SOURCE, (TARGET,)))
    check_prompts(folder, FUSED, Wanted(CLIP, SOURCE, (TARGET, "a blue circle")))


def test_frames_that_devices_cannot_share_are_refused(folder, monkeypatch):
    devices = jax.devices()[:3]
    monkeypatch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, devices))
    with pytest.raises(ValueError, match="clip.count = 4: must be a multiple of 3, the number of"):
        open_editor(folder, PLAIN)


@pytest.mark.slow
def test_a_resolution_without_attention_is_refused(edits):
    fusion = dataclasses.replace(FUSION, mask_reduction=8)
    for config, key in (
        (dataclasses.replace(FUSED, fusion=fusion), "fusion.mask_reduction"),
        (dataclasses.replace(PLAIN, heatmaps=("a",), heatmap_reduction=8), "heatmap_reduction"),
    ):
        with pytest.raises(ValueError, match=f"config.{key} = 8: must be one of 1, 2, 4"):
            editors.Editor(edits[1].stage, config)


@pytest.mark.slow
def test_numbers_that_are_none_write_nothing(edits, tmp_path):
    from contextdiff_jax.training.failure import NotFinite

    _, editor, wanted = edits
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), editor.stage.params)
    stage = dataclasses.replace(editor.stage, params=broken)
    other = editors.Editor.__new__(editors.Editor)
    other.__dict__ |= editor.__dict__ | {"stage": stage}
    with pytest.raises(NotFinite, match="step 1, t = .*, frame 0 is not finite"):
        other.invert(CLIP, SOURCE, 0)
    path, maps = editor.invert(CLIP, SOURCE, 0)
    # The source's state of frame 2 after the second step; the blend puts it back.
    torn = path.at[2, 2].set(np.nan)
    with pytest.raises(NotFinite, match="edit .*: step 2, t = 502, frame . is not finite"):
        editor.edit((torn, maps), SOURCE, TARGET)


# -- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(path / f"{number:03d}.png")
    return path


COMMAND = ["--config=configs/video_editing.py:per_frame", f"--config.clip.count={FRAMES}"]
COMMAND += [f"--config.num_steps={STEPS}", "--config.height=32", "--config.width=32"]


@pytest.mark.slow
def test_the_command(forks, folder, frames_folder, tmp_path):
    asked = [*COMMAND, f"--model={folder}", f"--clip={frames_folder}", f"--output={tmp_path}"]
    asked += [f"--source_prompt={SOURCE}"]
    # Not by forks, which end what takes long: this compiles.
    command = [sys.executable, "-m", "contextdiff_jax.edit", *asked, f"--prompt={TARGET}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "00/clip.webp").exists() and (tmp_path / "00/edit.json").exists()
    for flags, sentence in (
        ([f"--prompt={TARGET}", "--config.clip.stride=2"], "4 at stride 2 from 0 need 7; stride 1"),
        ([], "--prompt is missing"),
        ([f"--prompt={TARGET}", "--config.height=30"], "--height=30: must be a multiple of 16"),
        (["--prompt=x"], "holds edits of something else"),
    ):
        refused = forks("edit", *asked, *flags)
        assert refused.returncode == 2
        assert sentence in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--tgve=DATA", "--clip=stunt", "--prompt=x"], "--prompt=x: not with --tgve, which gives"),
        (["--clip=stunt", "--submission=OUT"], "--submission=OUT: only together with --tgve"),
        (["--tgve=DATA", "--clip=stun"], "--clip=stun: with --tgve, must be one of its 2 videos"),
        (["--tgve=no", "--clip=stunt"], "--tgve=no: no such folder"),
        (["--tgve=DATA", "--clip=stunt"], "has 3 frames: 4 at stride 1 from 0 need 4"),
    ],
)
def test_videos_of_the_benchmark(flags, sentence, forks, tmp_path):
    data = write_tgve(tmp_path)
    asked = [*COMMAND, f"--model={tmp_path}", f"--output={tmp_path}/out"]
    refused = forks("edit", *asked, *(flag.replace("DATA", data) for flag in flags))
    assert refused.returncode == 2
    assert sentence in refused.stderr.splitlines()[-1]

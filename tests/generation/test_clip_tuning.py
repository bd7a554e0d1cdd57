"""Tuning on a clip: it learns, only what it may, and its weights are read again."""

import dataclasses

import jax
import numpy as np
import pytest

from contextdiff_jax.data.clips import Clip, ClipConfig
from contextdiff_jax.encoders.video_weights import load_video_unet
from contextdiff_jax.generation import clip_tuning, stable_diffusion
from contextdiff_jax.generation.editing_config import EditingConfig, TuningConfig
from contextdiff_jax.generation.editor import Beside, open_editor
from contextdiff_jax.generation.network_file import load_network
from contextdiff_jax.generation.video_editing import Wanted, edit_clip
from contextdiff_jax.networks.config import AdapterConfig
from contextdiff_jax.networks.video_config import VideoConfig
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.system.interruption import Watch
from contextdiff_jax.training.parameter_names import by_name, matches

FRAMES, SIDE = 2, 32
PIXELS = np.random.default_rng(2).integers(0, 255, (FRAMES, SIDE, SIDE, 3), np.uint8)
CLIP = Clip(PIXELS, "clip", 8.0, (SIDE, SIDE))
CONFIG = EditingConfig(
    "tune_a_video",
    clip=ClipConfig(count=FRAMES),
    height=SIDE,
    width=SIDE,
    video=VideoConfig(keys_from=("first", "previous")),
    tuning=TuningConfig(
        steps=40, learning_rate=3e-3, trainable=(*TuningConfig.trainable, "adapter")
    ),
    adapter=AdapterConfig(patch_size=4, width=16, num_blocks=1, heads=2, time_width=8),
    num_steps=3,
    invert_prompt="none",
)


@pytest.mark.slow
def test_a_tuned_network_denoises_its_clip_better(
    latent_oracles, clip_folder, tmp_path, monkeypatch
):
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.generation import stable_diffusion_folder

    device = jax.devices()[:1]
    monkeypatch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, device))
    (tmp_path / "model").mkdir()
    model = str(stable_diffusion_folder.write(tmp_path / "model"))
    clip = str(clip_folder)
    editor = open_editor(model, CONFIG, Beside(image_encoder=clip)).for_clip(CLIP)
    wanted = Wanted(CLIP, "a red circle", ("a circle of red",))
    output = tmp_path / "edits"
    edit_clip(editor, wanted, output, 0, Watch())
    assert (output / "00/edit.json").exists()
    sizes, tuned = load_video_unet(output / "tuned", CONFIG.inflation)
    assert sizes == editor.stage.task.denoiser.config
    before, after = by_name(editor.stage.params["denoiser"]), by_name(tuned)
    for name in before:
        same = np.array_equal(before[name], after[name])
        assert same != matches(name, CONFIG.tuning.trainable), name
    stage = editor.stage
    batch = stage.task.collate_requests([{"text": wanted.source}])
    tuning = clip_tuning.Tuning(editor.network, stage.params, stage.frozen, CLIP, batch, stage.mesh)
    task = tuning.task()
    keys = jax.random.split(jax.random.key(9), 6)
    loss = jax.jit(
        lambda params: jax.lax.map(
            lambda key: task.loss(params, task.frozen, {}, key)[0], keys
        ).mean()
    )
    adapter = load_network(output / "tuned", "adapter", stage.params["adapter"])
    kernels = [by_name(each)["out/kernel"] for each in (stage.params["adapter"], adapter)]
    assert [bool(np.any(kernel)) for kernel in kernels] == [False, True]
    learned = float(loss({"denoiser": tuned, "adapter": adapter}))
    assert learned < 0.9 * float(loss(stage.params))
    assert float(loss({"denoiser": tuned, "adapter": stage.params["adapter"]})) > learned
    # The same command does not tune again, and --tuned takes the weights to another prompt.
    monkeypatch.setattr(clip_tuning, "tune", None)
    (output / "00/edit.json").unlink()
    first = (output / "00/frames/000.png").read_bytes()
    edit_clip(editor, wanted, output, 0, Watch())
    assert (output / "00/frames/000.png").read_bytes() == first
    other = open_editor(model, CONFIG, Beside(str(output / "tuned"), clip))
    assert other.config.tuning.steps == 0
    given = by_name({"denoiser": tuned, "adapter": adapter})
    for name, leaf in by_name(other.stage.params).items():
        np.testing.assert_array_equal(leaf, given[name])
    wrong = dataclasses.replace(CONFIG.tuning, trainable=("**/temporl",))
    with pytest.raises(ValueError, match=r"config.tuning.trainable has '\*\*/temporl'"):
        clip_tuning.check_trainable(task, wrong)

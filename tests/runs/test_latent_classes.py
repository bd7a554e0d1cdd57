"""Classes in latents: a run that starts from CompVis' single file, as cin256-v2 was published."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.class_label import LabelConfig
from contextdiff_jax.encoders.diffusers_configs import read_unet_config
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.runs.start import start
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_class_to_image import LatentClassToImageConfig
from tests.fixtures.tiny_tasks import build_loaded

CLASSES = ("a red circle", "a blue square", "a green cross")
WIDTH = 24  # of the networks' context
TABLE = np.arange(4.0 * WIDTH, dtype=np.float32).reshape(4, WIDTH) / 50


@pytest.fixture(scope="module")
def published(latent_oracles, tmp_path_factory):
    """A folder of one single file: U-Net, class embedding and first stage; sizes are known."""
    from tests.encoders import compvis_folder

    embedding = {"cond_stage_model.embedding.weight": TABLE}
    with compvis_folder.known(tmp_path_factory.mktemp("ldm"), embedding) as folder:
        yield folder


@pytest.fixture(scope="module")
def config(published):
    presets = importlib.import_module("configs.stable_diffusion")
    config = cfg.from_config_dict({**presets.get_config("tiny").to_dict(), "model": "unread"})
    run = config.runs["base"]
    unet = read_unet_config(published.parent / "unet")
    task = LatentClassToImageConfig(
        classes=CLASSES,
        label=LabelConfig(width=WIDTH, channels=8, groups=4),
        latent_unet=unet,
        first_stage=FirstStageRef(str(published)),
        diffusion=DiffusionConfig(
            schedule="scaled_linear", betas=(0.0015, 0.0195), prediction="eps", loss_weight="snr"
        ),
        sampler=run.task.sampler,
    )
    begun = cfg.WarmStartConfig(str(published))
    run = dataclasses.replace(run, task=task, start_from=begun, trainable=("conditions",))
    drawn = cfg.SamplesConfig(prompts=CLASSES)
    changed = {"model": "", "use_adapter": False, "samples": drawn}
    return dataclasses.replace(config, runs={"base": run}, **changed)


@pytest.mark.slow
def test_the_run_starts_from_the_file_and_draws_by_its_rows(config, tmp_path):
    """The denoiser attends to the class's row; where it is hidden, or "", to the last one."""
    from etils import epath

    validate(config)
    task = build_loaded(config, "base")
    begun = start(config, "base", task, epath.Path(tmp_path), None)
    assert list(begun.weights) == ["conditions"]
    params = {**begun.task.fixed, **begun.weights}
    table = params["conditions"]["label"]["denoiser"]["table"]
    np.testing.assert_array_equal(table, TABLE)
    betas = 1 - task.schedule.alpha_bar[1:] / task.schedule.alpha_bar[:-1]
    np.testing.assert_allclose(betas[[0, -1]], [0.0015, 0.0195], rtol=1e-6)

    batch = task.collate([CLASSES[2], CLASSES[0], ""])
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    keep = np.array([True, False, True])

    @jax.jit
    def ours(params):
        _, denoise = task.networks(params, task.frozen, batch)
        return denoise(x, np.full(3, 500.0, np.float32), keep)

    context = TABLE[np.array([2, 3, 3])][:, None]
    expected = jax.jit(LatentUNet(task.denoiser.config).apply)(
        {"params": params["denoiser"]}, x, np.full(3, 500.0, np.float32), context
    )
    np.testing.assert_allclose(ours(params), expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"classes": ("a",)}, "classes = .'a',.: must be two names or more"),
        ({"label": LabelConfig(width=16)}, "latent_unet.context_dim = 24: must be 16"),
        (
            {"diffusion": DiffusionConfig(betas=(0.1, 0.2))},
            r"betas = \(0.1, 0.2\): must be two numbers .* where .*schedule is 'cosine'",
        ),
        (
            {"diffusion": DiffusionConfig(schedule="linear", betas=(0.2, 0.1))},
            "must be two numbers that rise",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, cause, config):
    run = cfg.with_task(config.runs["base"], **changes)
    with pytest.raises(ValueError, match=cause):
        validate(dataclasses.replace(config, runs={"base": run}))


def test_a_file_of_another_number_of_classes_is_refused_by_name(config, tmp_path):
    from etils import epath

    task = dataclasses.replace(config.runs["base"].task, classes=CLASSES[:2])
    run = dataclasses.replace(config.runs["base"], task=task)
    other = dataclasses.replace(config, runs={"base": run})
    with pytest.raises(ValueError, match=r"table is \(4, 24\), must be \(3, 24\)"):
        start(other, "base", build_loaded(other, "base"), epath.Path(tmp_path), None)

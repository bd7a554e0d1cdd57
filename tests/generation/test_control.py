"""A control picture for Stable Diffusion, against diffusers' ControlNet pipeline."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.stable_diffusion import ControlSettings, Settings
from contextdiff_jax.generation.start_pictures import read_control, read_start
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.sampling.noise import sample_keys, step_noise

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("one_device"),
]

PROMPTS = ["a red circle", ""]
SIZE = (32, 48)  # height, width
STEPS = 3


@pytest.fixture(scope="module")
def folders(latent_oracles, tmp_path_factory):
    """The tiny Stable Diffusion folder, its ControlNet's, and a picture."""
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.encoders import controlnet_folder
    from tests.generation import stable_diffusion_folder

    made = tmp_path_factory.mktemp("control")
    (made / "model").mkdir()
    stable_diffusion_folder.write(made / "model", **{"_class_name": "DDIMScheduler"})
    controlnet_folder.write(made / "branch")
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made / "edges.png")
    return made


def theirs(folders, scale):
    import diffusers
    import torch

    branch = diffusers.ControlNetModel.from_pretrained(folders / "branch")
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folders / "model", controlnet=branch, safety_checker=None, low_cpu_mem_usage=False
    )
    pipe.set_progress_bar_config(disable=True)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(sample_keys(3, jnp.arange(2)))
    noise = np.moveaxis(np.array(step_noise(keys, 0, (8, 12, 4))), -1, 1)
    return pipe(
        PROMPTS,
        [Image.open(folders / "edges.png")] * 2,
        latents=torch.from_numpy(noise.copy()),
        num_inference_steps=STEPS,
        controlnet_conditioning_scale=scale,
        output_type="np",
    ).images


def settings(folders, scale=1.0, **more):
    control = ControlSettings(folders / "branch", read_control(folders / "edges.png"), scale)
    return Settings(sampler=[f"num_steps={STEPS}"], control=control, **more)


def drawn(folders, settings):
    cascade = stable_diffusion.load(folders / "model", settings)
    requests = [{"text": prompt} for prompt in PROMPTS]
    return cascade, cascade.draw(requests, seed=3)["base"]


@pytest.fixture(scope="module")
def uncontrolled(folders):
    device = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, device))
        plain = Settings(*SIZE, sampler=[f"num_steps={STEPS}"])
        return drawn(folders, plain)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_pictures_are_those_of_diffusers(scale, folders, uncontrolled):
    """With guidance 7.5; the branch works on both of its sides."""
    cascade, images = drawn(folders, settings(folders, scale))
    expected = theirs(folders, scale)
    assert np.mean((expected > 0) & (expected < 1)) > 0.5
    assert np.abs((images + 1) / 2 - expected).max() < 1 / 255
    assert np.abs(images - uncontrolled[1]).max() > 0.1
    stage, plain = cascade.stages[0], uncontrolled[0].stages[0]
    assert stage.task.described() != plain.task.described()
    assert stage.identity()["control"].startswith("sha256:")


def test_a_branch_of_no_weight_changes_nothing(folders, uncontrolled):
    _, images = drawn(folders, settings(folders, 0.0))
    # Another compiled program: up to its rounding.
    np.testing.assert_allclose(images, uncontrolled[1], atol=1e-4)


# ---- what is refused, before any weights are read


@pytest.mark.parametrize(
    ("file", "values", "cause"),
    [
        ("branch", {"cross_attention_dim": 32}, "cross_attention_dim = 32: must be 24, unet/ of"),
        ("branch", {"layers_per_block": 2}, "layers_per_block = 2: must be 1, unet/ of --model"),
        (
            "branch",
            {"conditioning_embedding_out_channels": [8, 8]},
            "halves the picture to 1/2, must be 1/4 as vae/ of --model",
        ),
    ],
)
def test_a_branch_of_another_network_is_named(file, values, cause, folders, tmp_path):
    import json

    target = tmp_path / "all"
    shutil.copytree(folders, target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ValueError) as error:
        stable_diffusion.load(target / "model", settings(target))
    assert cause in str(error.value) and "--controlnet=" in str(error.value)


def test_sizes_that_do_not_agree_are_named(folders, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "start.png")
    start = read_start(tmp_path / "start.png", None, None)
    for more, cause in (
        ({"start": start}, "--control: is 48 x 32: must be 32 x 32 as --init_image"),
        ({"height": 64}, "--height=64: must be 32, that of --control"),
        ({"scale": float("nan")}, "--control_scale=nan: must be a finite number"),
    ):
        with pytest.raises(ValueError) as error:
            stable_diffusion.load(folders / "model", settings(folders, **more))
        assert cause in str(error.value)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="--control=.*text.png: cannot be read as a picture"):
        read_control(tmp_path / "text.png")

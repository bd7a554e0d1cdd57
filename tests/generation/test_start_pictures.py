"""Image-to-image and inpainting, against diffusers' pipelines on a tiny random folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.stable_diffusion import Settings
from contextdiff_jax.generation.start_pictures import read_control, read_start
from contextdiff_jax.parallel.mesh import make_mesh
from contextdiff_jax.sampling.noise import sample_keys, step_noise
from contextdiff_jax.tasks.latent_text_to_image import Start

# diffusers itself, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a red circle", "of"]
HEIGHT, WIDTH = 32, 48
NAMES = {"ddim": "DDIMScheduler", "dpm_solver++": "DPMSolverMultistepScheduler"}
NAMES["plms"] = "PNDMScheduler"


@pytest.fixture(scope="module")
def folder(latent_oracles, tmp_path_factory):
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.generation import stable_diffusion_folder

    return stable_diffusion_folder.write(tmp_path_factory.mktemp("first"))


@pytest.fixture
def picture(tmp_path):
    """A picture's file: waves, so that no two rows or columns are alike."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(0.2 * x + 0.1 * y), np.cos(0.15 * y), np.sin(0.02 * x * y / 4)]
    pixels = np.round(127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path):
    """A mask's file: grey levels about a slanted edge."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    Image.fromarray(np.clip(8 * (x - y) + 60, 0, 255).astype(np.uint8)).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def theirs(folder, monkeypatch):
    """Returns a function to pictures of a pipeline of diffusers, from our noise and the mean."""
    import diffusers
    import torch
    from diffusers.models.autoencoders import vae

    def mean(distribution, generator=None):
        return distribution.mode()

    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(sample_keys(3, jnp.arange(2)))
    noise = step_noise(keys, 0, (HEIGHT // 4, WIDTH // 4, 4))
    start = torch.from_numpy(np.array(np.moveaxis(noise, -1, 1)))
    monkeypatch.setattr(vae.DiagonalGaussianDistribution, "sample", mean)

    def run(kind, scheduler, **call):
        monkeypatch.setattr(f"{kind.__module__}.randn_tensor", lambda *_, **__: start.clone())
        pipe = kind.from_pretrained(folder, safety_checker=None, low_cpu_mem_usage=False)
        scheduler = getattr(diffusers, NAMES[scheduler])
        pipe.scheduler = scheduler.from_pretrained(folder / "scheduler")
        pipe.set_progress_bar_config(disable=True)
        return pipe(PROMPTS, output_type="np", **call).images

    return run


def ours(folder, monkeypatch, start, *sampler):
    device = jax.devices()[:1]
    monkeypatch.setattr(stable_diffusion, "make_mesh", lambda config: make_mesh(config, device))
    cascade = stable_diffusion.load(folder, Settings(sampler=sampler, start=start))
    return (cascade.draw([{"text": prompt} for prompt in PROMPTS], seed=3)["base"] + 1) / 2


def assert_same(images, expected):
    assert np.mean((expected > 0) & (expected < 1)) > 0.5
    assert np.abs(images - expected).max() < 1 / 255


def slow(*cases):
    """Each compiles a program of its own: the fast half has the first alone."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# With PLMS diffusers' image-to-image is one time ahead of the state from its third call on.
@pytest.mark.parametrize(
    ("sampler", "num_steps", "strength"),
    [("ddim", 5, 0.5), *slow(("dpm_solver++", 7, None), ("ddim", 3, 1.0))],
)
def test_image_to_image(sampler, num_steps, strength, folder, picture, theirs, monkeypatch):
    import diffusers

    start = read_start(picture, None, strength)
    settings = f"name={sampler}", f"num_steps={num_steps}"
    call = {} if strength is None else {"strength": strength}
    expected = theirs(
        diffusers.StableDiffusionImg2ImgPipeline,
        sampler,
        image=Image.open(picture),
        num_inference_steps=num_steps,
        **call,
    )
    assert_same(ours(folder, monkeypatch, start, *settings), expected)


@pytest.mark.parametrize(
    ("sampler", "num_steps", "strength"),
    slow(("plms", 5, None), ("dpm_solver++", 4, None), ("ddim", 6, 0.5)),
)
def test_inpainting(sampler, num_steps, strength, folder, picture, mask, theirs, monkeypatch):
    import diffusers

    start = read_start(picture, mask, strength)
    settings = f"name={sampler}", f"num_steps={num_steps}"
    expected = theirs(
        diffusers.StableDiffusionInpaintPipeline,
        sampler,
        image=Image.open(picture),
        mask_image=Image.open(mask),
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=num_steps,
        **({} if strength is None else {"strength": strength}),
    )
    assert_same(ours(folder, monkeypatch, start, *settings), expected)


@pytest.mark.slow
def test_one_step_of_plms_from_a_picture_is_ddims(folder, picture, monkeypatch):
    start = read_start(picture, None, 0.5)
    assert start.skipped(2) == 1
    drawn = ours(folder, monkeypatch, start, "name=plms", "num_steps=2")
    same = ours(folder, monkeypatch, start, "name=ddim", "num_steps=2")
    np.testing.assert_allclose(drawn, same, atol=1e-4)


# ---- what is refused


def test_files_that_are_no_pictures_are_named(picture, tmp_path):
    text = tmp_path / "none.png"
    text.write_text("no picture")
    for given in ((text, None), (picture, text)):
        flag = "init_image" if given[1] is None else "mask"
        with pytest.raises(ValueError, match=f"--{flag}=.*none.png: cannot be read as a picture"):
            read_start(*given, None)
    with pytest.raises(ValueError, match="--init_image=nofile.png: no such file"):
        read_start("nofile.png", None, None)
    Image.new("L", (5000, 1)).save(tmp_path / "wide.png")
    with pytest.raises(ValueError, match="wide.png: is 5000 x 1: must be at most 4096 pixels a"):
        read_start(tmp_path / "wide.png", None, None)


def test_pictures_are_read_as_those_of_data_are(tmp_path):
    """Turned upright, transparency on white, 16 bits brought to 8; masks too."""
    pixels = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = read_start(tmp_path / "turned.png", None, None).picture
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))
    clear = np.zeros((32, 48, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert read_control(tmp_path / "clear.png").min() == 255
    grey = np.full((48, 32), 100 * 256, np.uint16)  # below the middle of 16 bits
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert not read_start(tmp_path / "turned.png", tmp_path / "grey.png", None).free.any()


def test_a_mask_of_another_size_is_named(picture, tmp_path):
    Image.new("L", (48, 31)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="mask.png: is 48 x 31: must be 48 x 32 as --init_image"):
        read_start(picture, tmp_path / "mask.png", None)


@pytest.mark.parametrize(
    ("settings", "strength", "cause"),
    [
        ({}, 0.0, "strength = 0.0: must be above 0 and at most 1"),
        ({}, 1.5, "strength = 1.5: must be above 0 and at most 1"),
        ({"sampler": ["num_steps=4"]}, 0.2, "strength = 0.2: must be at least 0.25, one of the 4"),
        ({"height": 64}, 0.5, "--height=64: must be 32, that of --init_image"),
        ({"side": 40}, 0.5, "width of --init_image=40: must be a multiple of 16"),
    ],
)
def test_starts_that_are_not_allowed_are_named(settings, strength, cause, folder):
    settings = dict(settings)
    pixels = np.zeros((32, settings.pop("side", 48), 3), np.uint8)
    with pytest.raises(ValueError) as error:
        stable_diffusion.load(folder, Settings(**settings, start=Start(pixels, strength)))
    assert cause in str(error.value)

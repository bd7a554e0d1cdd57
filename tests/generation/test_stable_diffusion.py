"""Stable Diffusion from a folder, against diffusers' pipeline on a tiny random one."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.stable_diffusion import Settings
from contextdiff_jax.runs.scheduler_config import read_scheduler
from contextdiff_jax.sampling.noise import sample_keys
from tests.oracles.stable_diffusion import assert_same, theirs

# diffusers itself, on NumPy 2.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("one_device"),
]

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["a red circle of red", "", "circle of red " * 20]  # the last is cut


@pytest.fixture(scope="module")
def writer(latent_oracles):
    pytest.importorskip("transformers", reason="the oracle is transformers' torch model")
    from tests.generation import stable_diffusion_folder

    return stable_diffusion_folder.write


@pytest.fixture(scope="module")
def folder(writer, tmp_path_factory):
    """As 1.x was published."""
    return writer(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(writer, tmp_path_factory):
    """As 2.1 was published: v-prediction, DDIM, another padding token, exact GELU."""
    changes = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    return writer(tmp_path_factory.mktemp("second"), second=True, **changes)


CASES = {
    "as published": (None, ["num_steps=5"], "", (32, 32), {}),
    "plms": ("PNDMScheduler", ["num_steps=6"], "of", (32, 48), {"guidance_scale": 3.0}),
    "ddim": ("DDIMScheduler", ["num_steps=4"], "", (48, 32), {"guidance_scale": 5.0}),
    "solver": ("DPMSolverMultistepScheduler", ["num_steps=5"], "a circle", (32, 48), {}),
    "without guidance": ("DDIMScheduler", ["num_steps=4"], "of", (32, 32), {"guidance_scale": 1.0}),
}
NAMES = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "DPMSolverMultistepScheduler": "dpm_solver++",
}


def both(folder, scheduler, settings, negative, size, call):
    """Our pictures and theirs."""
    settings = list(settings)
    if scheduler is not None:
        settings += [f"name={NAMES[scheduler]}"]
    settings += [f"{key}={value}" for key, value in call.items()]
    cascade = stable_diffusion.load(folder, Settings(*size, negative, settings))
    images = cascade.draw([{"text": prompt} for prompt in PROMPTS], seed=3)["base"]
    steps = cascade.stages[0].sampler.num_steps
    wanted = {"num_inference_steps": steps, "negative_prompt": [negative] * len(PROMPTS)}
    return images, theirs(folder, scheduler, PROMPTS, size, **call, **wanted)


def fast(case):
    """Every case compiles a program of its own: the first stands for all in the fast half."""
    return case if case == next(iter(CASES)) else pytest.param(case, marks=pytest.mark.slow)


@pytest.mark.parametrize("case", [fast(case) for case in CASES])
def test_pictures_are_those_of_diffusers(case, folder):
    assert_same(*both(folder, *CASES[case]))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", [None, "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_pictures_of_the_second_version_are_those_of_diffusers(scheduler, second):
    assert_same(*both(second, scheduler, ["num_steps=3"], "of", (32, 48), {}))


@pytest.mark.slow
def test_the_command_writes_them(folder, tmp_path):
    """At the size the network was trained at; the log says that nothing is filtered."""
    arguments = [f"--model={folder}", f"--output={tmp_path}", "--seed=3", "--sampler=num_steps=3"]
    arguments += ["--prompt=a red circle", "--negative_prompt=of"]
    command = [sys.executable, "-m", "contextdiff_jax.sample", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "safety checker" in done.stderr
    drawn = np.asarray(Image.open(tmp_path / "base/0000.png"), np.float32) / 255
    call = {"num_inference_steps": 3, "negative_prompt": ["of"]}
    expected = theirs(folder, None, ["a red circle"], (32, 32), **call)
    assert drawn.shape == (32, 32, 3)
    assert np.abs(drawn - expected[0]).max() <= 1.01 / 255


def test_a_filter_of_one_s_own_makes_pictures_black(folder, caplog):
    asked = [{"text": "of"}] * 2
    settings = Settings(sampler=["num_steps=1"])
    cascade = stable_diffusion.load(folder, settings, lambda images: np.array([True, False]))
    assert "safety checker" not in caplog.text
    free, black = cascade.draw(asked)["base"]
    assert (black == -1).all() and (free != -1).any()
    assert "1 of 2 pictures are filtered out" in caplog.text
    cascade.shown = lambda images: np.ones(3)
    with pytest.raises(ValueError, match=r"must be bool \(2,\)"):
        cascade.draw(asked)


def test_words_that_are_cut_are_named(folder, caplog):
    cascade = stable_diffusion.load(folder, Settings(negative="of " * 76 + "enough"))
    cascade.stream([{"text": PROMPTS[2] + "end"}])
    lost = [record.message for record in caplog.records if "prompt cut to 77" in record.message]
    assert len(lost) == 2 and lost[0].endswith("end") and lost[1].endswith("enough")


def test_tokens_after_the_end_of_the_text_matter(folder):
    """Trap 14: nothing is masked."""
    [stage] = stable_diffusion.load(folder, Settings(sampler=["num_steps=1"])).stages
    batch = stage.task.collate(["of"])
    changed = {**batch, "text_ids": batch["text_ids"].copy()}
    changed["text_ids"][0, 3:] = 0  # start, "of" and end stay
    keys = sample_keys(0, jnp.arange(1))
    drawn = [stage.program(stage.params, stage.frozen, each, keys) for each in (batch, changed)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3


# ---- what is refused, before any weights are read: the copies have none


@pytest.fixture
def configs(folder, tmp_path):
    """A copy of the folder without its weights."""
    target = tmp_path / "model"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "cause"),
    [
        ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "must be one of linear, scaled_line"),
        ("scheduler", {"beta_start": 0.5}, "beta_start = 0.5, beta_end = 0.012: must rise"),
        ("scheduler", {"beta_end": float("nan")}, "beta_end = nan: must be finite"),
        ("scheduler", {"beta_end": "x"}, "beta_end = 'x': must be float"),
        ("scheduler", {"trained_betas": [0.1]}, "trained_betas = [0.1]: must be None"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = True: must be F"),
        ("scheduler", {"num_train_timesteps": 1}, "num_train_timesteps = 1: must be in 2..10,000"),
        ("scheduler", {"prediction_type": "sample"}, "'sample': must be one of epsilon, v_predic"),
        ("scheduler", {"prediction_type": []}, "prediction_type = []: must be one of"),
        ("scheduler", {"steps_offset": 3}, "steps_offset = 3: must be 0 or 1"),
        ("scheduler", {"skip_prk_steps": False}, "skip_prk_steps = False: must be True"),
        ("scheduler", {"set_alpha_to_one": "no"}, "set_alpha_to_one = 'no': must be bool"),
        ("scheduler", {"timestep_spacing": "linspace"}, "'linspace': must be one of leading, trai"),
        ("scheduler", {"_class_name": "EulerDiscreteScheduler"}, "or give one of --sampler=name=p"),
        (
            "scheduler",
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
            "use_karras_sigmas = True: must be False",
        ),
        ("unet", {"cross_attention_dim": 32}, "cross_attention_dim = 32: must be 24, text_encoder"),
        ("unet", {"in_channels": 9, "out_channels": 9}, "in_channels = 9: must be 4, vae/ has so"),
        ("model_index", {"_class_name": "StableDiffusionXLPipeline"}, "must be 'StableDiffusionPi"),
    ],
)
def test_what_does_not_fit_is_named(file, values, cause, configs):
    paths = {
        "scheduler": "scheduler/scheduler_config.json",
        "unet": "unet/config.json",
        "model_index": "model_index.json",
    }
    change(configs / paths[file], **values)
    with pytest.raises(ValueError) as error:
        stable_diffusion.load(configs)
    assert cause in str(error.value) and str(configs) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (Settings(height=40), "--height=40: must be a multiple of 16, 4 of the first stage x 4 of"),
        (Settings(width=8), "--width=8: must be a multiple of 16"),
        (Settings(sampler=["name=plsm"]), "--sampler=name=plsm: must be one of plms, ddim, dpm_s"),
        (Settings(sampler=["name=ddpm"]), "--sampler=name=ddpm: must be one of plms, ddim, dpm_s"),
        (Settings(sampler=["num_steps=1001"]), "num_steps = 1001: num_sample = 1001: must be"),
        (Settings(sampler=["num_steps=0"]), "num_steps = 0: num_sample = 0: must be"),
        (Settings(sampler=["threshold=static"]), "threshold = 'static': must be 'none', latents"),
        (Settings(sampler=["guidance_scale=-1"]), "guidance_scale = -1.0: must be at least 0"),
        (Settings(sampler=["steps=3"]), "--sampler=steps=3: field must be one of"),
    ],
)
def test_settings_that_are_not_allowed_are_named(settings, cause, configs):
    with pytest.raises(ValueError) as error:
        stable_diffusion.load(configs, settings)
    assert cause in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(part, configs):
    shutil.rmtree(configs / part)
    with pytest.raises(ValueError, match=f"has no {part}/: must have unet/, vae/, text_encoder/"):
        stable_diffusion.load(configs)


def test_weights_that_are_missing_are_named(configs):
    with pytest.raises(FileNotFoundError, match="vae' has neither diffusion_pytorch_model.safete"):
        stable_diffusion.load(configs)


def test_a_folder_with_fp16_variants_alone_is_read(folder, tmp_path):
    def renamed(source, target):
        shutil.copy(source, target.replace(".safetensors", ".fp16.safetensors"))

    target = tmp_path / "model"
    shutil.copytree(folder, target, copy_function=renamed)
    names = {path.name for path in target.rglob("*.safetensors")}
    assert names == {"model.fp16.safetensors", "diffusion_pytorch_model.fp16.safetensors"}
    found, expected = (
        stable_diffusion.load(each).stages[0].identity() for each in (target, folder)
    )
    assert found == expected


def test_an_early_file_is_read_as_diffusers_pipelines_do(configs):
    """Without steps_offset, with clip_sample: both are set right."""
    path = configs / "scheduler/scheduler_config.json"
    values = json.loads(path.read_text())
    del values["steps_offset"], values["clip_sample"]
    path.write_text(json.dumps({**values, "clip_sample": True}))
    assert read_scheduler(path.parent).sampler().offset == 1

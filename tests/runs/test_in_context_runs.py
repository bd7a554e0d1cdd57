"""In-context runs whole, in pixels and in latents: trained, exported, drawn from, measured."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from PIL import Image

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.requests import null_request
from contextdiff_jax.conditions.together import denoiser_inputs
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.encoders import controlnet_weights
from contextdiff_jax.encoders.latent_weights import load_unet
from contextdiff_jax.evaluation.evaluation import Settings, evaluate
from contextdiff_jax.evaluation.in_context_scenes import plan_in_context
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.runs import train
from contextdiff_jax.runs.abstract import abstract_trained_task
from contextdiff_jax.runs.start import start
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.runs.weights import whole_ema
from contextdiff_jax.tasks.diffusion_config import PreviewConfig
from contextdiff_jax.training.parameter_names import by_name
from tests.fixtures.tiny_tasks import WIDTH, build_loaded

# diffusers itself, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TASK = "runs__base__task"
NORMALIZE = {f"{TASK}__context__normalize": False}


def preset(name, **keys):
    """The typed config of configs/in_context.py; keys with "__" in the place of "."."""
    values = importlib.import_module("configs.in_context").get_config(name)
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in keys.items()})
    return cfg.from_config_dict(values)


@pytest.fixture(scope="module")
def in_latents(request, latent_oracles):
    """Returns make(**keys) -> the config in the latents of a tiny random folder."""
    folder = request.getfixturevalue("sd_folder")
    return lambda **keys: preset("latent_tiny", model=str(folder), **keys)


def with_clip(config, folder, **task):
    """The config with a random CLIP in the place of the one that the pipeline trains."""
    clip = cfg.EncoderRef(path=str(folder))
    text = clip if config.encoders.text.path.startswith("run:") else config.encoders.text
    return dataclasses.replace(
        config,
        runs={"base": cfg.with_task(config.runs["base"], **task)},
        encoders=dataclasses.replace(config.encoders, clip=clip, text=text),
        pipeline=("base",),
    )


@pytest.fixture(scope="module", params=["test", "latent_tiny"])
def trained(request, one_device, clip_folder, tmp_path_factory):
    """A config and the folder of its runs, trained for a few steps and exported."""
    name = request.param
    plain = {"preview": PreviewConfig(), "diagnose_every": 0}
    if name == "latent_tiny":
        config = request.getfixturevalue("in_latents")()
    else:
        config = preset(name)
        unet = config.runs["base"].task.unet  # of one level: the one in latents has several
        plain["unet"] = dataclasses.replace(
            unet, text_dim=WIDTH, multipliers=(1,), attention_levels=(0,), head_dim=WIDTH // 2
        )
    config = with_clip(config, clip_folder, **plain)
    validate(config)
    workdir = epath.Path(tmp_path_factory.mktemp(name))
    train.train_pipeline(config, workdir, lambda *_: None)  # which exports, without any prompts
    return config, workdir


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in (("a", (40, 24)), ("b", (16, 16))):
        pixels = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return [str(folder / f"{name}.png") for name in "ab"]


@pytest.mark.slow
def test_an_export_draws_what_requests_ask_for(trained, pictures):
    """Finite pictures, others for another context; the new branch is two to four steps old."""
    config, workdir = trained
    a, b = pictures
    cascade = Cascade.load(workdir / "export")
    requests = [
        {"text": "a red circle", "context": [a, b], "query": a},
        {"text": "a red circle", "context": [b, a], "query": a},
        {"text": None, "context": [a, b], "query": a},
        {"text": "a red circle", "context": None, "query": None},
    ]
    # The noise is the place's: each request at the first one.
    pairs = [[each, requests[0]] for each in requests]
    drawn = np.stack([cascade.draw(each, seed=3, batch_size=2)["base"][0] for each in pairs])
    side = config.runs["base"].data.resolution
    assert drawn.shape == (4, side, side, 3) and np.isfinite(drawn).all()
    differences = np.abs(drawn - drawn[0]).max(axis=(1, 2, 3))
    assert differences[1] < 1e-3 < min(differences[2:]), differences
    with pytest.raises(ValueError, match="request 1 is for no condition at all"):
        cascade.draw([null_request(cascade.conditions)])


@pytest.mark.slow
def test_an_export_is_measured(trained, tmp_path):
    _, workdir = trained
    settings = Settings(output=str(tmp_path), export=str(workdir / "export"), count=2, batch_size=2)
    evaluate(settings, {"in_context": plan_in_context})
    found = json.loads((tmp_path / "results.json").read_text())["results"]["in_context"]
    assert set(found["values"]) >= {"context and query", "prompt and query"}
    assert found["protocol"]["count"] == 2 and found["protocol"]["split"] == "test"
    assert len(list((tmp_path / "in_context_context_query/base").iterdir())) == 2


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(trained, tmp_path):
    config, workdir = trained
    begun = epath.Path(tmp_path / "begun")
    shutil.copytree(workdir, begun)
    last = begun / "base/checkpoints" / str(config.runs["base"].steps)
    shutil.rmtree(last)
    train.train_pipeline(config, begun, lambda *_: None, only="base")
    assert last.exists()
    ours, theirs = (by_name(whole_ema(folder / "base")[0]) for folder in (begun, workdir))
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def test_the_emoji_preset_fits_the_emoji(shared_data, clip_folder):
    """Real pictures, captions and styles give the arrays that its loss reads; traced alone."""
    config = preset("emoji", data_path=str(shared_data("emoji")))
    unet = dataclasses.replace(config.runs["base"].task.unet, text_dim=WIDTH, head_dim=WIDTH)
    config = with_clip(config, clip_folder, unet=unet)
    validate(config)
    run, task = config.runs["base"], build_loaded(config, "base")
    source = open_source(run.data)
    batches = make_batches(source, run.data, run.batch_size, seed=0, tokenize=task.collate)
    batch = next(iter(batches))
    batches.close()
    assert batch["query"].shape == (run.batch_size, 32, 32, 4)
    assert batch["context"].shape == (run.batch_size, 32, 32, 3, 4) and batch["present"].all()
    key = jax.random.key(0)
    params = nn.unbox(jax.eval_shape(task.init, key))
    loss, _ = jax.eval_shape(task.loss, params, task.frozen, batch, key)
    assert loss.shape == () and loss.dtype == np.float32


# ---- in latents alone


@pytest.fixture(scope="module")
def built(in_latents, clip_folder):
    config = with_clip(in_latents(), clip_folder)
    return config, build_loaded(config, "base")


def moved(task):
    """Parameters off their zeros; shapes alone are traced."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.slow
def test_the_branch_begins_as_a_copy_and_the_encoder_stays(built, sd_folder, tmp_path):
    config, task = built
    begun = start(config, "base", task, epath.Path(tmp_path), None)
    _, published = load_unet(sd_folder / "unet")
    published = by_name({"denoiser": published})
    fixed, taken = by_name(begun.task.fixed), by_name(begun.weights)
    assert {name.split("/")[1].split("_")[0] for name in fixed} == {"conv", "down", "time"}
    for name, leaf in fixed.items():
        np.testing.assert_array_equal(leaf, published[name])
        copy = name.replace("denoiser/", "denoiser/control/")
        np.testing.assert_array_equal(taken[copy], leaf)
    anew = set(by_name(jax.eval_shape(task.init, jax.random.key(0)))) - set(fixed) - set(taken)
    tops = {"/".join(name.split("/")[:3]).rstrip("0123456789") for name in anew}
    own = {"denoiser/control/hint", "denoiser/control/zero_", "denoiser/control/zero_middle"}
    assert tops == own | {"conditions/context/denoiser"}


def test_a_published_branch_is_the_beginning_instead(in_latents, clip_folder, sd_folder, tmp_path):
    """unet/ and controlnet/ of one folder: all but the conditions' own parameters is there."""
    from tests.encoders import controlnet_folder

    folder = epath.Path(tmp_path / "published")
    shutil.copytree(sd_folder, folder)
    controlnet_folder.write(folder / "controlnet")
    keys = {"path": "model:", "fresh": ("conditions",)}
    keys = {f"runs__base__start_from__{name}": value for name, value in keys.items()}
    config = preset("latent_tiny", **keys, **{"model": str(folder), **NORMALIZE})
    config = with_clip(config, clip_folder)
    validate(config)
    task = build_loaded(config, "base")
    begun = start(config, "base", task, epath.Path(tmp_path), None)
    control = {
        name.removeprefix("denoiser/control/"): leaf
        for name, leaf in by_name(begun.weights).items()
        if name.startswith("denoiser/control/")
    }
    sizes = controlnet_weights.read_controlnet_config(folder / "controlnet")
    expected = by_name(controlnet_weights.load_controlnet(folder / "controlnet", sizes))
    assert control.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(leaf, control[name], err_msg=name)
    query = {"query": np.full((1, 32, 32, 4), 255, np.uint8)}
    assert np.all(np.asarray(task.conditions[2].encode({}, {}, query).inputs["hint"]) == 1)
    config = with_clip(
        preset(
            "latent_tiny", model=str(folder), **keys, **{f"{TASK}__latent_unet__heads": (2, 2, 4)}
        ),
        clip_folder,
    )
    with pytest.raises(ValueError, match="must be .2, 2, 2., as the U-Net in"):
        validate(config)


@pytest.mark.slow
def test_what_is_not_there_is_what_published_weights_call_nothing(built, pictures):
    """The network attends to [text, context]: of what is hidden or missing "", a black picture."""
    _, task = built
    own = moved(task)["conditions"]
    a, b = pictures
    none = {"text": None, "context": None, "query": a}
    whole = {**none, "text": "a red circle", "context": [a, b]}
    batch = task.collate_requests([whole, whole, none])

    @jax.jit
    def read(frozen, keep):
        given = task._given({"conditions": own}, frozen, batch)
        return task.denoiser_reads(denoiser_inputs(given, {"text": keep, "context": keep}))

    text, context, _ = task.conditions
    ids = text.text.tokenizer(["a red circle", ""])
    said, unsaid = text.text.encode_whole(text.text.params, *ids)
    layer = own["context"]["denoiser"]
    black = context.encoder.tokens(context.encoder.params, -jnp.ones((1, 32, 32, 3)))
    black = (black @ layer["kernel"] + layer["bias"])[0]
    found = read(task.frozen, np.array([True, False, True]))
    tokens = np.asarray(found["context"])
    for row in (1, 2):
        np.testing.assert_allclose(tokens[row], np.concatenate([unsaid, black]), atol=1e-5)
    np.testing.assert_allclose(tokens[0, :77], said, atol=1e-5)
    assert np.abs(tokens[0, 77:] - black).max() > 1e-2
    assert found["hint_present"].all()  # guidance keeps the query


@pytest.mark.slow
def test_a_sampler_s_network_is_the_folders_own_of_these_tokens(built, pictures, sd_folder):
    """With a new branch; hidden and missing tokens stand where the others would."""
    _, task = built
    params = moved(task)
    _, unet = load_unet(sd_folder / "unet")
    params = {**params, "denoiser": {**unet, "control": silent(params["denoiser"]["control"])}}
    a, b = pictures
    none = {"text": None, "context": None, "query": a}
    batch = task.collate_requests([{**none, "text": "a red circle", "context": [a, b]}, none, none])
    x, t = np.random.default_rng(0).normal(size=(3, 8, 8, 4)), np.full(3, 500.0, np.float32)
    x = x.astype(np.float32)

    @jax.jit
    def denoised(params, keep):
        _, denoise = task.networks(params, task.frozen, batch)
        return denoise(x, t, keep)

    text, context, _ = task.conditions
    said = text.text.encode_whole(text.text.params, *text.text.tokenizer(["a red circle", "", ""]))
    seen = context.encode(params["conditions"]["context"], task.frozen, batch).tokens
    tokens = jnp.concatenate([said, seen], axis=1)
    plain = jax.jit(LatentUNet(task.denoiser.config).apply)
    expected = plain({"params": unet}, x, t, tokens)
    np.testing.assert_allclose(denoised(params, np.ones(3, bool)), expected, atol=1e-4)
    hidden = denoised(params, np.array([False, True, True]))
    swapped = plain({"params": unet}, x, t, tokens[np.array([1, 1, 2])])
    np.testing.assert_allclose(hidden, swapped, atol=1e-4)
    assert np.abs(hidden[0] - expected[0]).max() > 1e-3


def silent(control):
    """A branch that adds nothing yet."""
    zero = {name: jax.tree.map(np.zeros_like, w) for name, w in control.items() if "zero" in name}
    return {**control, **zero}


@pytest.mark.slow
def test_a_new_branch_leaves_the_folders_network_as_it_is(built, sd_folder):
    _, task = built
    _, unet = load_unet(sd_folder / "unet")
    control = silent(moved(task)["denoiser"]["control"])
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(3, 8, 8, 4)).astype(np.float32), np.full(3, 500.0, np.float32)
    tokens = rng.normal(size=(3, 82, 24)).astype(np.float32)
    hint = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    plain = jax.jit(LatentUNet(task.denoiser.config).apply)
    expected = np.asarray(plain({"params": unet}, x, t, tokens))
    params, present = {"params": {**unet, "control": control}}, np.array([True, True, False])
    found = jax.jit(task.denoiser.apply)(params, x, t, tokens, hint, present)
    np.testing.assert_allclose(found, expected, atol=1e-4)


WRONG = {
    "hint": (
        {f"{TASK}__hint_channels": (8, 12)},
        r"hint_channels = \(8, 12\): halves the query to 1/2, must be 1/4 as the first stage",
    ),
    "no hint": ({f"{TASK}__hint_channels": ()}, "hint_channels = .*must be numbers of at least 1"),
    "count": ({f"{TASK}__context__most": 2}, "context.most = 2: must be 3, the pictures of"),
    "heads": ({f"{TASK}__latent_unet__heads": (2, 2, 4)}, "must be .2, 2, 2., as the U-Net in"),
    "latents": ({"runs__base__data__latents": "some"}, "data.latents = 'some': must be empty, con"),
}


@pytest.mark.parametrize("case", WRONG)
def test_configs_that_do_not_fit_are_refused(case, in_latents):
    keys, cause = WRONG[case]
    with pytest.raises(ValueError, match=cause):
        validate(in_latents(**keys))


@pytest.mark.slow
def test_the_published_preset_is_as_large_as_its_parts():
    """Stable Diffusion 1.5, ControlNet, and one layer from CLIP's width to the text's."""
    config = preset("stable_diffusion", model="x/stable-diffusion-v1-5", data_path="pictures")
    validate(config, files=False, platform=None)
    task = abstract_trained_task(config, "base")
    trained = by_name(jax.eval_shape(task.init, jax.random.key(0)))
    sizes = {name: leaf.size for name, leaf in (trained | by_name(task.fixed)).items()}
    own = {name: size for name, size in sizes.items() if name.startswith("conditions/")}
    assert sum(own.values()) == 1024 * 768 + 768
    assert sum(sizes.values()) - sum(own.values()) == 859_520_964 + 361_279_120
    assert config.runs["base"].data == DataConfig(
        source="folder",
        path="pictures",
        resolution=256,
        resize_mode="border",
        styles=config.runs["base"].data.styles,
    )

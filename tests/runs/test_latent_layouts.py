"""Layouts in latents: a run that starts from CompVis' single file, drawn from before any step."""

import dataclasses
import importlib

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.layout import LayoutConfig
from contextdiff_jax.conditions.layout_tokens import PAD, VOCABULARY
from contextdiff_jax.encoders.diffusers_configs import read_unet_config
from contextdiff_jax.encoders.layout_weights import PREFIX, layout_transformer_tensors
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.networks.latent_unet import LatentUNet
from contextdiff_jax.networks.layout_transformer import LayoutTransformer
from contextdiff_jax.runs.export_begun import export_begun
from contextdiff_jax.runs.start import start
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.runs.weights import read_named
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.first_stage import FirstStageRef
from contextdiff_jax.tasks.latent_layout_to_image import LatentLayoutToImageConfig
from tests.fixtures.tiny_tasks import build_loaded

# diffusers itself, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLASSES = ("zebra", "apple", "cat")  # not sorted: the model numbers them so
WIDTH = 24  # of the networks' context
LAYOUT = LayoutConfig(
    objects=3, tokens="ldm", width=WIDTH, layers=2, heads=3, map=False, listed=True
)


def conditioner():
    """Random tensors by LDM's names, and the parameters that they are."""
    module, rng = LayoutTransformer(LAYOUT.transformer), np.random.default_rng(8)
    tokens = np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)
    return layout_transformer_tensors(LAYOUT.transformer, params), params


@pytest.fixture(scope="module")
def published(latent_oracles, tmp_path_factory):
    """A folder of one single file: U-Net, transformer and first stage; sizes are known."""
    from tests.encoders import compvis_folder

    with compvis_folder.known(tmp_path_factory.mktemp("ldm"), conditioner()[0]) as folder:
        yield folder


@pytest.fixture(scope="module")
def config(published):
    values = importlib.import_module("configs.layout").get_config("latent")
    config = cfg.from_config_dict(values)
    run = config.runs["base"]
    run = cfg.with_task(
        dataclasses.replace(
            run,
            data=dataclasses.replace(run.data, resolution=32, path="unread"),
            start_from=cfg.WarmStartConfig(str(published)),
        ),
        classes=CLASSES,
        layout=LAYOUT,
        latent_unet=read_unet_config(published.parent / "unet"),
        first_stage=FirstStageRef(str(published)),
        sampler=dataclasses.replace(run.task.sampler, num_steps=2),
    )
    return dataclasses.replace(config, runs={"base": run})


@pytest.mark.slow
def test_the_network_attends_to_the_published_transformer_s_tokens(config, tmp_path):
    """Tokens by hand: classes as listed, corners on 90 x 90, pads, the whole picture's crop."""
    validate(config)
    task = build_loaded(config, "base")
    params = start(config, "base", task, epath.Path(tmp_path), None).weights
    layouts = ["cat 0 0 0.5 1", ";", ""]
    batch = task.collate(layouts)
    empty = [PAD] * 9 + [0, 8099]
    cat = [2, 0, 45 - 1 + 90 * 89] + [PAD] * 6 + [0, 8099]
    assert batch["layout_tokens"][:2].tolist() == [cat, empty]
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    t = np.full(3, 500.0, np.float32)

    @jax.jit
    def ours(params, keep):
        _, denoise = task.networks(params, task.frozen, batch)
        return denoise(x, t, keep)

    @jax.jit
    def theirs(tokens):
        context = LayoutTransformer(LAYOUT.transformer).apply({"params": conditioner()[1]}, tokens)
        unet = LatentUNet(task.denoiser.config)
        return unet.apply({"params": params["denoiser"]}, x, t, context)

    expected = np.asarray(theirs(np.array([cat, empty, empty])))
    np.testing.assert_allclose(ours(params, np.ones(3, bool)), expected, atol=1e-4)
    hidden = np.asarray(theirs(np.array([empty] * 3)))
    np.testing.assert_allclose(ours(params, np.zeros(3, bool)), hidden, atol=1e-4)
    assert np.abs(hidden[0] - expected[0]).max() > 1e-3


def test_every_tensor_of_the_file_is_a_parameter(config, published):
    """As many numbers of U-Net and transformer as the file has, each once."""
    tensors = load_file(published / "model.safetensors")
    learned = {n: v for n, v in tensors.items() if not n.startswith("first_stage_model.")}
    found = read_named(epath.Path(published))
    assert sum(v.size for v in found.values()) == sum(v.size for v in learned.values())
    ours = np.sort(np.concatenate([v.ravel() for v in found.values()]))
    theirs = np.sort(np.concatenate([v.ravel() for v in learned.values()]))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_what_a_run_begins_with_is_exported_and_drawn_from(config, tmp_path, one_device):
    export_begun(config, tmp_path)
    cascade = Cascade.load(tmp_path)
    layouts = ["cat 0 0 0.5 1; apple 0.5 0.5 1 1", "apple 0.5 0.5 1 1; cat 0 0 0.5 1", ";"]
    # The noise is the place's: each layout at the first one.
    drawn = [cascade.draw([{"layout": each}], seed=1, batch_size=1)["base"][0] for each in layouts]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-3 and np.isfinite(drawn).all()
    assert drawn[0].shape == (32, 32, 3)
    card = (tmp_path / "README.md").read_text()
    assert "0 of" in card and str(config.runs["base"].start_from.path) in card


def changed(config, **task):
    return dataclasses.replace(config, runs={"base": cfg.with_task(config.runs["base"], **task)})


@pytest.mark.parametrize(
    ("layout", "cause"),
    [
        ({"tokens": "objects"}, "layout.listed = True: must be False, only LDM's tokens read it"),
        ({"tokens": "objects", "listed": False}, "layout.tokens = 'objects': must be 'ldm', in"),
        ({"map": True}, "layout.map = True: must be False, in latents"),
        ({"width": 48}, "latent_unet.context_dim = 24: must be 48"),
    ],
)
def test_layouts_that_latents_do_not_have_are_refused(layout, cause, config):
    with pytest.raises(ValueError, match=cause):
        validate(changed(config, layout=dataclasses.replace(LAYOUT, **layout)))


def test_a_file_that_does_not_fit_is_refused_by_name(config, published, tmp_path):
    other = changed(config, layout=dataclasses.replace(LAYOUT, objects=4))
    with pytest.raises(ValueError, match=r"positions is \(11, 24\), must be \(14, 24\)"):
        start(other, "base", build_loaded(other, "base"), epath.Path(tmp_path), None)
    tensors = load_file(published / "model.safetensors")
    for name, change in (
        ("attn_layers.layers.3.1.net.2.bias", dict.pop),
        ("attn_layers.layers.3.9.odd", lambda d, n: d.update({n: np.zeros(1, np.float32)})),
    ):
        wrong = dict(tensors)
        change(wrong, f"{PREFIX}{name}")
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=name):
            read_named(epath.Path(tmp_path))
    many = {**tensors, f"{PREFIX}attn_layers.layers.9998.0": np.zeros(1, np.float32)}
    save_file(many, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="has 5000 layers of a layout: must be 256 or less"):
        read_named(epath.Path(tmp_path))
    assert tensors[f"{PREFIX}token_emb.weight"].shape == (VOCABULARY, WIDTH)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            lambda run: {"start_from": cfg.WarmStartConfig()},
            "must be one, with a folder in its",
        ),
        (
            lambda run: {"start_from": cfg.WarmStartConfig("run:other")},
            "must be one, with a folder in its start_from.path",
        ),
        (
            lambda run: {"start_from": dataclasses.replace(run.start_from, fresh=("conditions",))},
            "start_from leaves conditions/layout.* at random values: must take all",
        ),
    ],
)
def test_what_cannot_be_exported_untrained_is_named(change, cause, config, tmp_path):
    run = dataclasses.replace(config.runs["base"], **change(config.runs["base"]))
    with pytest.raises(ValueError, match=cause):
        export_begun(dataclasses.replace(config, runs={"base": run}), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_the_process_is_the_published_one():
    values = importlib.import_module("configs.layout").get_config("latent")
    task = cfg.from_config_dict(values).runs["base"].task
    assert isinstance(task, LatentLayoutToImageConfig)
    assert task.layout.transformer.max_length == 92 and task.layout.layers == 16
    assert task.diffusion == DiffusionConfig(
        schedule="scaled_linear", betas=(0.0015, 0.0205), prediction="eps", loss_weight="snr"
    )

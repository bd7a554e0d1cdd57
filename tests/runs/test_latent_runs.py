"""Runs in Stable Diffusion's latents: what is trained, what is held, what diffusers makes of it."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.config import ConfigError
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.latents import MIRRORED, PLAIN, Latents, LatentSource
from contextdiff_jax.encoders.latent_weights import load_unet
from contextdiff_jax.encoders.lora_weights import load_lora
from contextdiff_jax.generation import stable_diffusion
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.stable_diffusion import Settings
from contextdiff_jax.networks.lora import with_lora
from contextdiff_jax.runs import train
from contextdiff_jax.runs.export import export_pipeline
from contextdiff_jax.runs.export_diffusers import export_diffusers
from contextdiff_jax.runs.prepare import Job, prepare
from contextdiff_jax.runs.prepare_latents import LatentWorker
from contextdiff_jax.runs.scheduler_config import scheduler_json
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.runs.weights import whole_ema
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.training.checkpoints import load_tree
from contextdiff_jax.training.parameter_names import by_name
from tests.fixtures.parameters import initial
from tests.fixtures.tiny_tasks import build_loaded

# diffusers itself, on NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TASK = "runs__base__task"
LORA = {
    "use_adapter": False,
    f"{TASK}__lora": {"rank": 2, "alpha": 4.0},
    f"{TASK}__preview__every": 0,
    "runs__base__trainable": ("lora",),
    "runs__base__start_from__fresh": ("lora",),
}


def trained(config, workdir):
    """The folder of runs after `train_pipeline`, without samples."""
    validate(config)
    train.train_pipeline(config, workdir, lambda *_: None, only="base")
    return workdir


@pytest.fixture(scope="module")
def lora_config(sd_config):
    return sd_config(**LORA)


@pytest.fixture(scope="module")
def with_updates(lora_config, tmp_path_factory, one_device):
    """A folder of runs with updates of low rank that were trained for two steps."""
    from etils import epath

    return trained(lora_config, epath.Path(tmp_path_factory.mktemp("lora")))


@pytest.fixture(scope="module")
def exported(lora_config, with_updates):
    export_diffusers(lora_config, with_updates, with_updates / "diffusers")
    return with_updates / "diffusers"


@pytest.mark.slow
def test_state_and_checkpoint_hold_the_updates_alone(with_updates, sd_folder):
    state = load_tree(with_updates / "base/checkpoints/2/state")
    assert list(state["params"]) == list(state["ema"]) == ["lora"]
    weights, _ = whole_ema(with_updates / "base")
    _, published = load_unet(sd_folder / "unet")
    jax.tree.map(np.testing.assert_array_equal, weights["denoiser"], published)
    ups = [leaf for name, leaf in by_name(weights["lora"]).items() if name.endswith("/up")]
    assert all(np.abs(leaf).max() > 0 for leaf in ups) and len(ups) == 56


@pytest.mark.slow
def test_diffusers_loads_the_folder_and_draws_the_same(exported, one_device):
    """Its pipeline, from our noise; the updates change the picture."""
    from tests.oracles.stable_diffusion import assert_same, theirs

    cascade = stable_diffusion.load(exported, Settings(sampler=["num_steps=3"]))
    prompts = ["a red circle", "of"]
    images = cascade.draw([{"text": prompt} for prompt in prompts], seed=3)["base"]
    assert_same(images, theirs(exported, None, prompts, (32, 32), num_inference_steps=3))


@pytest.mark.slow
def test_the_folders_network_is_that_of_the_run_s_export(
    lora_config, with_updates, exported, one_device
):
    """sample --export draws by base and updates, sample --model by their sum."""
    export_pipeline(lora_config, with_updates, with_updates / "export")
    drawn = [
        cascade.draw([{"text": "a red circle"}], seed=5)["base"]
        for cascade in (
            Cascade.load(with_updates / "export", sampler=["guidance_scale=7.5"]),
            stable_diffusion.load(exported, Settings(sampler=["num_steps=3"])),
        )
    ]
    np.testing.assert_allclose(*drawn, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_updates_beside_make_the_folder_s_network_of_the_published_one(exported, sd_folder):
    config, published = load_unet(sd_folder / "unet")
    updates = load_lora(exported / "lora/pytorch_lora_weights.safetensors", config)
    _, whole = load_unet(exported / "unet")
    ours = with_lora(published, updates, 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, whole)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), published, whole))
    assert sum(change > 0 for change in moved) == 56


@pytest.mark.slow
def test_the_card_says_what_it_is_and_is_no_one_s_to_overwrite(
    exported, lora_config, with_updates, caplog
):
    text = (exported / "README.md").read_text()
    for part in ("library_name: diffusers", "2 of 2, 4 pictures each", "lora", "states no licence"):
        assert part in text
    (exported / "README.md").write_text("my own words")
    with caplog.at_level(logging.WARNING):
        export_diffusers(lora_config, with_updates, exported)
    assert (exported / "README.md").read_text() == "my own words"
    assert "is kept as it is" in caplog.text


@pytest.mark.slow
def test_an_adapter_that_is_zero_draws_stable_diffusion_to_the_last_digit(
    sd_config, sd_folder, one_device
):
    config = sd_config()
    task = build_loaded(config, "base")
    params = initial(task.init) | {"denoiser": load_unet(sd_folder / "unet")[1]}
    settings = ["name=ddim", "num_steps=3", "guidance_scale=5"]
    [plain] = stable_diffusion.load(sd_folder, Settings(sampler=settings)).stages
    batch, keys = task.collate(["a red circle", ""]), sample_keys(3, jnp.arange(2))
    sampler = task.sampler
    assert sampler == plain.sampler
    # Optimised, the two programs round differently, by 1e-6.
    exactly = {"static_argnums": 4, "compiler_options": {"xla_backend_optimization_level": 0}}
    drawn = [
        jax.jit(each.sample, **exactly)(weights, each.frozen, batch, keys, sampler)
        for each, weights in ((task, params), (plain.task, plain.params))
    ]
    np.testing.assert_array_equal(*drawn)


# ---- latents that were computed before


@pytest.fixture(scope="module")
def stored(lora_config, tmp_path_factory):
    """Eleven pictures of a folder as latents in shards of 4, the mirrored ones too."""
    folder, rows = tmp_path_factory.mktemp("pictures"), []
    for index in range(11):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(json.dumps({"file_name": f"{index}.png", "caption": f"number {index}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    data = DataConfig(source="folder", path=str(folder), resolution=32, flip=True, threads=1)
    run = dataclasses.replace(lora_config.runs["base"], data=data)
    config = dataclasses.replace(lora_config, runs={"base": run})
    output = tmp_path_factory.mktemp("latents")
    job = Job(config, "base", "", str(output), batch_size=3, shard_size=4, dtype="float32")
    prepare(job, worker=LatentWorker)
    return job


def test_stored_latents_are_the_stage_s_and_their_statistics_too(stored, lora_config):
    task = build_loaded(lora_config, "base")
    worker, latents = LatentWorker(stored), Latents(stored.output)
    images = np.stack([worker.source[index].image for index in range(11)])
    mean, log_variance = task.space_in(task.frozen).moments(images)
    found = np.stack([latents.read(index)[PLAIN] for index in range(11)])
    np.testing.assert_allclose(found, np.concatenate([mean, log_variance], -1), atol=1e-4)
    mirrored = np.stack([latents.read(index)[MIRRORED] for index in range(11)])
    expected = task.space_in(task.frozen).moments(images[:, :, ::-1])
    np.testing.assert_allclose(mirrored, np.concatenate(expected, -1), atol=1e-4)
    assert np.abs(mirrored - found[:, :, ::-1]).max() > 1e-2  # no first stage is symmetric
    both = np.concatenate([mean, expected[0]])
    for key, of in (("mean", np.mean), ("std", np.std)):
        stored_value = getattr(latents.metadata, key)
        np.testing.assert_allclose(stored_value, of(both, (0, 1, 2)), rtol=1e-3, atol=1e-4)


def test_a_prompt_that_is_hidden_is_the_encoded_empty_one(lora_config):
    """What the U-Net was trained with in its place; zeros are what no text encodes to."""
    task = build_loaded(lora_config, "base")
    (text,) = task.conditions

    def given(prompts):
        return text.encode({}, task.frozen, task.collate(prompts))

    shown = given(["a red circle", "of"])
    keep = jnp.array([True, False])
    inputs = {"text": shown.tokens, "keep": keep, "null": shown.inputs["null"]}
    context = task.denoiser_reads(inputs)["context"]
    empty = given([""]).tokens[0]
    np.testing.assert_allclose(context[1], empty, atol=1e-6)
    np.testing.assert_array_equal(context[0], shown.tokens[0])
    assert np.abs(empty).max() > 0.1 and np.abs(context[1] - shown.tokens[1]).max() > 0.1


def test_a_killed_preparation_goes_on_to_the_same_bytes(stored):
    folder = stored.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shard = sorted(folder.glob("*.array_record"))[1]
    shard.unlink()
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"finished": False}))
    prepare(stored, worker=LatentWorker)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_reads_them_and_draws_anew_of_each_posterior(stored, lora_config):
    """The loss on stored moments is that on the pictures, draw for draw."""
    task = build_loaded(lora_config, "base")
    worker, latents = LatentWorker(stored), Latents(stored.output)
    images = np.stack([worker.source[index].image for index in range(4)])
    source = LatentSource(worker.source, latents, stored.config.runs["base"].data)
    examples = [source[index] for index in range(4)]
    rows = np.stack([example.maps["latent"] for example in examples])
    mirrored = [example.mirrored().maps["latent"] for example in examples]
    np.testing.assert_array_equal(mirrored, [latents.read(i)[MIRRORED] for i in range(4)])
    key = jax.random.key(1)
    ours, theirs = (
        task.encoded(task.frozen, batch, key) for batch in ({"latent": rows}, {"image": images})
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert np.abs(theirs - task.encoded(task.frozen, {"image": images})).max() > 1e-3


# ---- what is refused before any long work


WRONG = {
    "no model": ({"model": ""}, "config.model is empty: must be a folder of Stable Diffusion"),
    "no folder": ({"model": "nowhere"}, "no folder there"),
    "another size": (
        {f"{TASK}__latent_unet__heads": (2, 2, 4)},
        r"latent_unet.heads = \(2, 2, 4\): must be \(2, 2, 2\), as the U-Net in",
    ),
    "prediction": ({f"{TASK}__diffusion__prediction": "v"}, "prediction = 'v': must be 'eps', as"),
    "betas": (
        {f"{TASK}__diffusion__schedule": "linear"},
        "schedule = 'linear' of 1000 steps: must be that of",
    ),
    "resolution": (
        {"runs__base__data__resolution": 40},
        "data.resolution / 4 of the first stage .for latent_unet. = 10: must be a multiple of",
    ),
    "threshold": (
        {f"{TASK}__sampler__threshold": "static"},
        "sampler.threshold = 'static': must be 'none', latents have no bounds",
    ),
    "bound": (
        {f"{TASK}__diffusion__objective": "mixed"},
        "objective = 'mixed': must be 'simple', latents have no bounds",
    ),
    "adapter": (
        {f"{TASK}__adapter__image_channels": 3},
        "adapter.image_channels = 3: must be 4, that of",
    ),
    "rank": ({f"{TASK}__lora": {"rank": 0, "alpha": 1.0}}, "lora.rank = 0: must be at least 1"),
    "normalization": (
        {f"{TASK}__first_stage__mean": (0.0,), f"{TASK}__first_stage__std": (0.0,)},
        "first_stage.std = ",
    ),
    "no first stage": ({f"{TASK}__first_stage__path": "gone"}, "reads 'gone': no folder there"),
}


@pytest.mark.parametrize("case", WRONG)
def test_configs_that_do_not_fit_are_refused(case, sd_config):
    keys, cause = WRONG[case]
    with pytest.raises(ValueError, match=cause):
        validate(sd_config(**keys))


def test_a_flow_has_no_scheduler_of_stable_diffusion():
    with pytest.raises(ValueError, match="diffusion.kind = 'flow': must be one of vp"):
        scheduler_json(DiffusionConfig(kind="flow"), SamplerConfig(name="ddim"))


def test_latents_of_other_data_of_as_many_samples_are_said(stored, caplog):
    from contextdiff_jax.data.sources import open_source

    data, latents = stored.config.runs["base"].data, Latents(stored.output)
    LatentSource(open_source(data), latents, data)
    assert not caplog.text
    latents.metadata = dataclasses.replace(latents.metadata, source="folder elsewhere")
    LatentSource(open_source(data), latents, data)
    assert "are of folder elsewhere, the run reads folder" in caplog.text


def test_a_stranger_s_description_of_latents_is_refused(stored, tmp_path):
    content = json.loads((stored.folder / "metadata.json").read_text()) | {"preparation": 5}
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no description of latents: preparation = 5"):
        Latents(tmp_path)


def test_latents_of_something_else_are_refused(stored, lora_config, sd_config, tmp_path):
    from contextdiff_jax.data.sources import open_source
    from contextdiff_jax.runs.stored_latents import with_latents

    run = stored.config.runs["base"]
    task = build_loaded(lora_config, "base")

    def opened(task=task, **data):
        changed = dataclasses.replace(run.data, latents=stored.output, **data)
        with_latents(dataclasses.replace(run, data=changed), open_source(changed), task)

    opened()
    for cause, data in (
        ("are of 11 samples", {"limit": 10}),
        ("were made with data.resolution = 32, the run has 48", {"resolution": 48}),
        ("were made with data.resize_mode = 'center_crop'", {"resize_mode": "border"}),
    ):
        with pytest.raises(ValueError, match=cause):
            opened(**data)
    unmirrored = Latents(stored.output)
    unmirrored.metadata = dataclasses.replace(unmirrored.metadata, mirrored=False)
    with pytest.raises(ValueError, match="data.flip = True needs: make them with"):
        LatentSource(open_source(run.data), unmirrored, run.data)
    other = dataclasses.replace(task.first_stage, identity="sha256:other")
    with pytest.raises(ValueError, match="made by the first stage sha256:.*is sha256:other"):
        opened(dataclasses.replace(task, first_stage=other))
    wrong = sd_config("tiny", runs__base__data__latents=str(tmp_path))
    with pytest.raises(ConfigError, match="must be empty, task 'text_to_image' does not train in"):
        other = dataclasses.replace(wrong.runs["base"], task=pixel_task())
        validate(dataclasses.replace(wrong, runs={"base": other}), platform=None)


def pixel_task():
    """A task in pixels."""
    import importlib

    from contextdiff_jax.config import from_config_dict

    values = importlib.import_module("configs.quickstart").get_config("test")
    return from_config_dict(values).runs["base"].task

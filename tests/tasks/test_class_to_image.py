"""Classes as a condition: which rows train, what no class is, what is refused, what is skipped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import classes
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.class_label import ClassLabel, ClassTokens, LabelConfig
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.sampling.noise import sample_keys
from contextdiff_jax.tasks.class_to_image import ClassToImageConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.task_config import Parts

NAMES = ("cat", "dog", "fish", "bird")
SIZES = LabelConfig(width=16, adapter_width=16, channels=8, side=2, groups=4)


@pytest.fixture(scope="module")
def make(make_config):
    """Returns make(use_adapter, **fields) -> the task of a config and its parts."""
    from contextdiff_jax.runs.build import LoadedEncoders, locate_in

    def make(use_adapter=True, drop=0.0):
        shared = make_config(use_adapter)
        task = ClassToImageConfig(
            classes=NAMES,
            label=SIZES,
            unet=dataclasses.replace(shared.runs["base"].task.unet),
            adapter=shared.runs["base"].task.adapter,
            diffusion=DiffusionConfig(num_steps=50, prediction="x0", drop_condition=drop),
            sampler=SamplerConfig(name="ddim", num_steps=3, guidance_scale=2.0),
        )
        encoders = LoadedEncoders(shared, locate_in("unused"))
        data = DataConfig(resolution=16)
        return task.build(Parts(data, jnp.float32, use_adapter, encoders))

    return make


def moved(task):
    """Parameters off their zeros; shapes alone are traced."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.slow
def test_only_the_rows_of_the_batchs_classes_get_a_gradient(make):
    """And no row does where the condition is always hidden: what is learned then is the null."""
    batch = {"image": np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)}
    for drop in (0.0, 1.0):
        task = make(drop=drop)
        batch |= task.collate(["fish", "cat", "fish", "cat"])
        params = moved(task)
        gradient = jax.jit(jax.grad(task.loss, has_aux=True))
        gradient, _ = gradient(params, task.frozen, batch, jax.random.key(0))
        label = gradient["conditions"]["label"]
        of_denoiser = np.abs(label["denoiser"]["table"]).sum(axis=1) > 0
        of_adapter = np.abs(label["adapter"]["embedding"]["table"]).sum(axis=1) > 0
        assert of_denoiser.tolist() == [drop == 0, False, drop == 0, False]
        assert of_adapter.tolist() == [True, False, True, False]  # never hidden from the adapter
        null = gradient["denoiser"]["conditioning"]["text"]["null_token"]
        assert (np.abs(null).sum() > 0) == (drop == 1)


def test_no_class_is_one_state_and_guidance_leads_to_the_class(make):
    task = make(use_adapter=False)
    params, keys = moved(task), sample_keys(0, jnp.zeros(4, int))
    draw = jax.jit(task.sample, static_argnums=4)
    unguided = dataclasses.replace(task.sampler, guidance_scale=0.0)
    null = np.asarray(draw(params, {}, task.collate([""] * 4), keys, task.sampler))
    none = np.asarray(draw(params, {}, task.collate(NAMES), keys, unguided))
    np.testing.assert_allclose(null, none, atol=1e-5)
    named = np.asarray(draw(params, {}, task.collate(NAMES), keys, task.sampler))
    differences = np.abs(named[:, None] - named[None]).max(axis=(2, 3, 4))
    assert np.all(differences[~np.eye(4, dtype=bool)] > 1e-3)


def test_the_adapter_tells_classes_apart_and_its_tokens_are_those_of_resnet_blocks():
    module = ClassTokens(4, SIZES)
    variables = nn.unbox(module.init(jax.random.key(0), jnp.zeros(1, jnp.int32)))
    tokens = module.apply(variables, jnp.arange(4))
    assert tokens.shape == (4, (2 * SIZES.side) ** 2, SIZES.adapter_width)
    assert np.abs(tokens[0] - tokens[1]).max() > 1e-3
    assert sorted(variables["params"]) == [
        *("embedding", "norm", "project", "res_0", "res_1", "res_2", "spread")
    ]


def test_the_size_that_the_reference_names():
    """8.9 M parameters for 1000 classes at the default sizes: shared/reference, section D."""
    module = ClassTokens(1000, LabelConfig())
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(1, jnp.int32))
    count = sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(shapes)))
    assert count / 1e6 == pytest.approx(8.9, abs=0.3)


def test_labels_become_their_places():
    label = ClassLabel(NAMES, SIZES)
    arrays = label.collate(["bird", "", "cat"])
    assert arrays["label"].tolist()[::2] == [3, 0]
    assert arrays["label_present"].tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"label 'brid': must be one of cat, .*did you mean bird"):
        label.collate(["cat", "brid"])
    many = ClassLabel(tuple(f"class {i}" for i in range(50)), SIZES)
    with pytest.raises(ValueError, match=r"class 9 \.\.\. \(50 in all\)"):
        many.collate(["x"])


def test_samples_of_no_class_are_skipped_and_counted(tmp_path, picture_bytes):
    rows = []
    for number, kind in enumerate(["cat", "dog", "cow", "cat"]):
        (tmp_path / f"{number}.png").write_bytes(picture_bytes(number))
        rows.append(json.dumps({"file_name": f"{number}.png", "class_name": kind}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    data = DataConfig(
        source="folder", path=str(tmp_path), resolution=16, caption_fields=("class_name",)
    )
    report = SkipReport()
    source = task_config().usable(open_source(data, report))
    label = ClassLabel(NAMES, SIZES)
    batches = make_batches(source, data, 8, seed=0, tokenize=label.collate, report=report)
    seen = next(batches)["label"]
    batches.close()
    assert set(seen.tolist()) == {0, 1}
    assert report.to_json()["skipped"] == {
        "label is none of the classes": {"count": 1, "names": ["2.png"]}
    }


def task_config(**fields):
    config = cfg.from_config_dict(classes.get_config("scenes"))
    return dataclasses.replace(config.runs["base"].task, **({"classes": NAMES} | fields))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("classes", ("cat",), r"base.task.classes = \('cat',\): must be two names or more"),
        ("classes", ("cat", " "), r"base.task.classes has a blank name: that stands for no class"),
        ("classes", ("cat", "dog", "cat"), r"classes has 'cat' twice: must be different names"),
        ("classes", 3, r"task.classes = 3: must be a tuple, is int"),
        ("label.width", 32, r"unet.text_dim = 64: must be 32, as wide as"),
        ("label.adapter_width", 32, r"adapter.text_dim = 64: must be 32, as wide as"),
        ("label.groups", 5, r"label.groups = 5: must divide .*label.channels = 32"),
        ("label.side", 0, r"label.side = 0: must be at least 1"),
        ("label.side", 65, r"label.side = 65: must be at most 64"),
        (
            "preview.prompts",
            ("a red circl",),
            r"request 1 has .*did you mean a red circle",
        ),
        ("low_resolution", 8, r"base.task.low_resolution = 8: unknown key"),
        ("kind", "class_to_imag", r"must be one of class_to_image, .*did you mean class_to_image"),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(key, value, sentence):
    values = classes.get_config("scenes").to_dict()
    *path, last = key.split(".")
    section = values["runs"]["base"]["task"]
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


def test_samples_of_no_class_are_refused_before_training():
    values = classes.get_config("scenes").to_dict()
    values["samples"]["prompts"] = ("", "a red circle", "a red circl")
    with pytest.raises(
        ValueError, match="config.samples.prompts: request 3 has label = 'a red circl': must be"
    ):
        validate(cfg.from_config_dict(values))


def test_stored_text_is_nothing_that_it_reads():
    values = classes.get_config("scenes").to_dict()
    values["runs"]["base"]["data"]["embeddings"] = "somewhere"
    with pytest.raises(ValueError, match="data.embeddings = 'somewhere': must be empty, task 'cl"):
        validate(cfg.from_config_dict(values))


def test_the_published_unet_fits_as_the_papers_class_network():
    """A U-Net of 1000 classes needs no other module than text's: one token per class."""
    unet = UNetConfig(text_dim=512, text_width=None)
    config = task_config(
        classes=tuple(map(str, range(1000))), unet=unet, label=LabelConfig(), adapter=None
    )
    config = dataclasses.replace(config, preview=dataclasses.replace(config.preview, prompts=()))
    config.validate("task", DataConfig(resolution=64), use_adapter=False)


def test_every_flower_has_its_class(shared_data):
    config = cfg.from_config_dict(classes.get_config("flowers"))
    run = config.runs["base"]
    data = dataclasses.replace(run.data, path=str(shared_data("flowers")))
    source = run.task.usable(open_source(data))
    assert {source.captions(i) for i in range(len(source))} == {(c,) for c in classes.FLOWERS}

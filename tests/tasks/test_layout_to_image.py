"""Layouts to pictures: what trains, what is hidden, what is skipped, what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import layout
from contextdiff_jax import config as cfg
from contextdiff_jax.conditions.layout import MANY, UNKNOWN, LayoutConfig
from contextdiff_jax.data.boxes import NO_BOXES, OUTSIDE, mirrored, parse_line
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.pipeline import make_batches
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.runs.build import LoadedEncoders, locate_in
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.sampling.config import SamplerConfig
from contextdiff_jax.tasks.diffusion_config import DiffusionConfig
from contextdiff_jax.tasks.layout_to_image import LayoutToImageConfig
from contextdiff_jax.tasks.task_config import Parts

CLASSES = ("cat", "dog", "fish", "bird")
SIZES = LayoutConfig(
    objects=2,
    width=16,
    layers=1,
    heads=2,
    painted=4,
    adapter_width=16,
    grid=4,
    channels=4,
    groups=2,
)
FISH_AND_CAT = "fish 0 0 0.5 1; cat 0.5 0.25 1 1"


@pytest.fixture(scope="module")
def make(make_config):
    """Returns make(use_adapter) -> a task of tiny networks."""

    def make(use_adapter=True):
        shared = make_config(use_adapter)
        task = LayoutToImageConfig(
            classes=CLASSES,
            layout=SIZES,
            unet=shared.runs["base"].task.unet,
            adapter=shared.runs["base"].task.adapter,
            diffusion=DiffusionConfig(num_steps=50, prediction="x0", drop_condition=0.0),
            sampler=SamplerConfig(name="ddim", num_steps=2, guidance_scale=2.0),
        )
        encoders = LoadedEncoders(shared, locate_in("unused"))
        return task.build(Parts(DataConfig(resolution=16), jnp.float32, use_adapter, encoders))

    return make


def moved(task):
    """Parameters off their zeros; shapes alone are traced."""
    rng = np.random.default_rng(1)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.mark.slow
def test_only_the_rows_of_classes_that_are_there_get_a_gradient(make):
    batch = {"image": np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)}
    task = make()
    batch |= task.collate([FISH_AND_CAT, ";"])
    gradient, _ = jax.jit(jax.grad(task.loss, has_aux=True))(
        moved(task), task.frozen, batch, jax.random.key(0)
    )
    own = gradient["conditions"]["layout"]
    tables = {
        "tokens": own["denoiser"]["tokens"]["embedding"]["table"],
        "map": own["denoiser"]["map"]["embedding"]["table"],
        "adapter": own["adapter"]["painted"]["embedding"]["table"],
    }
    for name, table in tables.items():
        trained = (np.abs(table).sum(axis=1) > 0).tolist()
        assert trained == [True, False, True, False], name


def test_a_hidden_layout_is_no_layout_and_a_shown_one_is_seen(make):
    task = make(use_adapter=False)
    params = moved(task)
    x, t = np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32), jnp.ones(3)

    @jax.jit
    def predict(batch, keep):
        return task.networks(params, {}, batch)[1](jnp.asarray(x[:1].repeat(3, 0)), t, keep)

    batch = task.collate([FISH_AND_CAT, "bird 0 0 1 1", ""])
    hidden = np.asarray(predict(batch, jnp.zeros(3, bool)))
    np.testing.assert_allclose(hidden, hidden[:1].repeat(3, 0), atol=1e-5)
    batch = task.collate([FISH_AND_CAT, ";", ""])
    shown = np.asarray(predict(batch, jnp.ones(3, bool)))
    np.testing.assert_allclose(shown[2], hidden[0], atol=1e-5)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(shown[one] - shown[other]).max() > 1e-3


def test_without_the_map_the_denoiser_is_the_plain_unet():
    config = scenes_task(layout={"map": False})
    encoders = LoadedEncoders(cfg.from_config_dict(layout.get_config("scenes")), locate_in("x"))
    task = config.build(Parts(DataConfig(resolution=16), jnp.float32, False, encoders))
    assert type(task.denoiser).__name__ == "UNet"
    batch = task.collate(["red circle 0 0 1 1"])
    own = {"layout": moved_layout(task.conditions[0])}
    given = task._given({"conditions": own}, {}, batch)["layout"]
    assert given.inputs == {} and given.tokens.shape == (1, 4, 64)


def moved_layout(condition):
    shapes = nn.unbox(jax.eval_shape(condition.init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def scenes_task(layout=None, **fields):
    config = cfg.from_config_dict(globals()["layout"].get_config("scenes"))
    task = config.runs["base"].task
    sizes = dataclasses.replace(task.layout, **(layout or {}))
    return dataclasses.replace(task, layout=sizes, **fields)


def test_samples_that_have_no_layout_of_these_classes_are_skipped_and_counted(
    tmp_path, picture_bytes
):
    boxes = {
        "good": [("cat", [0, 0, 0.4, 1]), ("dog", [0.5, 0, 1, 1])],
        "none": [],
        "cow": [("cow", [0, 0, 1, 1])],
        "many": [("cat", [0, 0, 1, 1])] * 3,
        "outside": [("cat", [0, 0, 1, 3])],
    }
    rows = [{"file_name": "plain.png", "caption": "x"}]
    for number, (name, found) in enumerate(boxes.items()):
        (tmp_path / f"{name}.png").write_bytes(picture_bytes(number))
        objects = [{"name": each, "box": box} for each, box in found]
        rows.append({"file_name": f"{name}.png", "caption": name, "objects": objects})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(
        source="folder", path=str(tmp_path), resolution=16, boxes_field="objects", flip=True
    )
    report = SkipReport()
    task = scenes_task(classes=CLASSES, layout={"objects": 2})
    source = task.usable(open_source(data, report))
    [condition] = task.conditions
    batches = make_batches(
        source, data, 64, seed=0, tokenize=condition.collate, report=report, with_text=True
    )
    batch = next(batches)
    batches.close()
    line = "cat 0 0 0.4 1; dog 0.5 0 1 1"
    flipped = mirrored(parse_line(line))
    assert set(batch["captions"]) == {";", line, "cat 0.6 0 1 1; dog 0 0 0.5 1"}
    row = batch["captions"].tolist().index("cat 0.6 0 1 1; dog 0 0 0.5 1")
    expected = [box.corners for box in flipped]
    np.testing.assert_allclose(batch["layout_boxes"][row], expected, atol=1e-6)
    assert report.to_json()["skipped"] == {
        NO_BOXES: {"count": 1, "names": ["plain.png"]},
        OUTSIDE: {"count": 1, "names": ["outside.png"]},
        UNKNOWN: {"count": 1, "names": ["cow.png"]},
        MANY: {"count": 1, "names": ["many.png"]},
    }


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("classes", (), r"base.task.classes = \(\): must be one name or more"),
        ("classes", ("cat", "a;b"), r"classes has 'a;b': must be words with one space between, wi"),
        ("classes", ("cat", " dog"), r"classes has ' dog': must be words"),
        ("classes", ("cat", "dog", "cat"), r"classes has 'cat' twice: must be different names"),
        ("layout.width", 32, r"unet.text_dim = 64: must be 32, as wide as"),
        ("layout.adapter_width", 32, r"adapter.text_dim = 64: must be 32, as wide as"),
        ("layout.groups", 5, r"layout.groups = 5: must divide .*layout.channels = 16"),
        ("layout.heads", 5, r"layout.heads = 5: must divide .*layout.width = 64"),
        ("layout.grid", 6, r"layout.grid = 6: must be a multiple of 4"),
        ("layout.objects", 0, r"layout.objects = 0: must be at least 1"),
        ("layout.objects", 2000, r"layout.objects = 2000: must be at most 1,024"),
        ("layout.layers", -1, r"layout.layers = -1: must be at least 0"),
        ("layout.tokens", "lmd", r"layout.tokens = 'lmd': must be one of objects, ldm"),
        (
            "preview.prompts",
            ("red circl 0 0 1 1",),
            r"preview.prompts: request 1 has .*did you mean red circle",
        ),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(key, value, sentence):
    values = layout.get_config("scenes").to_dict()
    *path, last = key.split(".")
    section = values["runs"]["base"]["task"]
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"source": "folder"}, r"base.data.boxes_field is missing; layout_to_image reads it"),
        ({"source": "shards"}, r"base.data.source = 'shards': must be .* hold no boxes"),
        ({"scenes": {"context": 2, "pairs": 0.0}}, r"scenes.context = 2: must be 0, .* no boxes"),
    ],
)
def test_data_without_boxes_are_refused(data, sentence):
    values = layout.get_config("scenes").to_dict()
    values["data_path"] = "x"
    section = values["runs"]["base"]["data"]
    section["scenes"] |= data.pop("scenes", {})
    section |= data
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


def test_layouts_of_samples_are_checked_before_training():
    values = layout.get_config("scenes").to_dict()
    values["samples"]["prompts"] = (";", "", "red circle 0 0 1 2")
    with pytest.raises(
        ValueError, match="samples.prompts: request 3 has layout = .* must lie within the picture"
    ):
        validate(cfg.from_config_dict(values))


@pytest.mark.parametrize("preset", layout.PRESETS)
def test_every_preset_is_valid(preset):
    values = layout.get_config(preset).to_dict()
    validate(cfg.from_config_dict({**values, "data_path": "somewhere"}), files=False)

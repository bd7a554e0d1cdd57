"""Every config file reads; every mistake ends with one sentence; every key is read by something."""

import dataclasses
import importlib
import pathlib
import re
import typing

import pytest

from contextdiff_jax import config as cfg
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.runs.validation import validate
from tests.fixtures.presets import load_preset as load

ROOT = pathlib.Path(__file__).parent.parent
FILES = [
    (path.stem, preset)
    for path in sorted((ROOT / "configs").glob("*.py"))
    if path.stem != "video_editing"  # no pipeline: tests/generation/test_editing_config.py
    for preset in importlib.import_module(f"configs.{path.stem}").PRESETS
]


@pytest.mark.parametrize(("name", "preset"), FILES)
def test_every_config_is_valid(name, preset, tmp_path, monkeypatch):
    config = load(name, preset)
    for ref in (config.encoders.text, config.encoders.clip):
        if not ref.path.startswith(("run:", "model:")):
            (tmp_path / ref.path).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config.data_path, config.model = "somewhere/{00000..00003}.tar", "somewhere"
    typed = cfg.from_config_dict(config)
    published = any(run.task.folders() for run in typed.runs.values())  # their content is read
    validate(typed, files=not published)


@pytest.mark.parametrize("name", sorted({name for name, _ in FILES}))
def test_an_unknown_preset_lists_the_known(name):
    with pytest.raises(ValueError, match="preset 'huge': must be one of"):
        load(name, "huge")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("runs.base.batch_sise", 3, r"config.runs.base.batch_sise = 3: unknown key"),
        ("runs.base.steps", "many", r"config.runs.base.steps = 'many': must be int, is str"),
        ("runs.base.steps", True, r"config.runs.base.steps = True: must be int, is bool"),
        ("runs.base.steps", 10**30, r"config.runs.base.steps = 1\d+: must fit into 64 bits"),
        (
            "runs.base.optimizer.b1",
            float("nan"),
            r"config.runs.base.optimizer.b1 = nan: must be fin",
        ),
        (
            "runs.base.task.sampler.num_steps",
            10**9,
            r"num_steps = 1000000000: must be at most",
        ),
        ("runs.base.steps", 0, r"config.runs.base.steps = 0: must be at least 1"),
        (
            "runs.base.task.sampler.name",
            "unipc",
            r"name = 'unipc': must be one of ddpm, ddim",
        ),
        ("runs.base.data.resolution", 17, r"runs.base.data.resolution.*= 17: .*multiple of 2"),
        ("runs.base.task.unet.multipliers", 2, r"unet.multipliers = 2: must be a tuple"),
        ("runs.base.task.unet.groups", 5, r"unet.groups = 5: must divide"),
        (
            "runs.base.task.unet.attention_implementation",
            "flash",
            r"base.task.unet.attention_implementation = 'flash': must be 'auto' or 'xla' on cpu",
        ),
        (
            "runs.sr.task.adapter.attention_implementation",
            "fused",
            r"adapter.attention_implementation = 'fused': must be one of auto, xla, cudnn, flash",
        ),
        (
            "runs.base.task.adapter.limit",
            -1.0,
            r"adapter.limit = -1.0: must be a positive number or None",
        ),
        (
            "runs.base.task.adapter",
            None,
            r"base.task.adapter is missing; task 'text_to_image'",
        ),
        ("runs.sr.task.low_resolution", 0, r"low_resolution = 0: must divide .*resolution = 64"),
        ("runs.sr.task.low_resolution", 24, r"low_resolution = 24: must divide .*resolution = 64"),
        (
            "runs.sr.task.diffusion.prediction",
            "eps",
            r"prediction = 'eps': must be 'x0' where .*residual",
        ),
        (
            "runs.base.task.diffusion",
            {"objective": "bound", "loss_weight": "x0", "times": "logit_normal"},
            r"diffusion.times = 'logit_normal': must be 'uniform' with objective 'bound', whose",
        ),
        (
            "runs.base.task.diffusion",
            {"prediction": "eps", "loss_weight": "x0"},
            r"runs.base.task.diffusion.loss_weight = 'x0': not with prediction 'eps'",
        ),
        (
            "runs.base.task.diffusion",
            {"prediction": "eps", "loss_weight": "flow"},
            r"loss_weight = 'flow': not with prediction 'eps', .* take one of snr, min_snr_5, p2",
        ),
        (
            "runs.base.task.diffusion.objective",
            "elbo",
            r"objective = 'elbo': must be one of",
        ),
        (
            "runs.base.task.diffusion.objective",
            "bound",
            r"loss_weight = 'min_snr_5_plus_1': must be 'x0', .* objective 'bound' does not",
        ),
        ("pipeline", ("clip", "bsae"), r"config.pipeline names 'bsae': must be one of"),
        ("encoders.clip.path", "run:klip", r"encoders.clip.path = 'run:klip': no such .*run:clip"),
        ("runs.base.data.source", "web", r"data.source = 'web': must be one of scenes, folder"),
        ("mesh", 8, r"config.mesh = 8: must be a section"),
        (
            "runs.base.data.resolution",
            32,
            r"runs.sr.task.low_resolution = 16: must be 32, the resolution of 'base'",
        ),
        (
            "pipeline",
            ("clip", "sr"),
            r"config.pipeline: 'sr' enlarges pictures of a stage before it",
        ),
        (
            "runs.base.task.sampler.num_steps",
            1001,
            r"task.sampler.num_steps = 1001: .* in 1..1000",
        ),
        ("runs.base.task.preview.num_steps", 0, r"base.task.preview.num_steps = 0: .* in 1..1000"),
        ("runs.sr.task.augmentation", 2.0, r"sr.task.augmentation = 2.0: must be in \[0, 1\]"),
        ("runs.base.task.diffusion.num_steps", 1, r"diffusion.num_steps = 1: must be at least 2"),
        (
            "runs.base.task.diffusion.drop_condition",
            1.5,
            r"drop_condition = 1.5: must be in \[0",
        ),
        (
            "runs.base.task.diffusion.adapter_condition",
            "other",
            "adapter_condition = 'other': must be one of own, shuffled, none",
        ),
        ("runs.base.task.diffusion.scaled_relation", -1.0, "scaled_relation = -1.0: must be above"),
        (
            "runs.base.task.diffusion.scaled_relation",
            0.3,
            "scaled_relation = 0.3: must be 0 with config.use_adapter = True",
        ),
        ("runs.base.optimizer.ema_decay", 1.0, r"optimizer.ema_decay = 1.0: must be in \[0, 1\)"),
        ("runs.base.optimizer.learning_rate", 0.0, r"learning_rate = 0.0: must be above 0"),
        ("runs.clip.optimizer.warmup_steps", -1, r"clip.optimizer.warmup_steps = -1: must be at l"),
        ("samples.batch_size", 0, r"config.samples.batch_size = 0: must be at least 1"),
        ("samples.augmentation", -0.5, r"samples.augmentation = -0.5: must be in \[0, 1\]"),
    ],
)
def test_mistakes_name_the_key_the_value_and_what_is_allowed(key, value, sentence):
    values = load("quickstart", "adapter").to_dict()
    *path, last = key.split(".")
    section = values
    for part in path:
        section = section[part]
    section[last] = value
    with pytest.raises(ValueError, match=sentence):
        validate(cfg.from_config_dict(values))


def test_class_names_of_cifar10_become_captions(tmp_path):
    values = load("cifar10", "cpu_folder")
    values.data_path = str(tmp_path)
    (tmp_path / "train").mkdir()
    row = '{"file_name": "0.png", "label": "cat"}'
    (tmp_path / "train" / "metadata.jsonl").write_text(row)
    for run in cfg.from_config_dict(values).runs.values():
        assert open_source(run.data).captions(0) == ("a photo of a cat",)
    for preset in ("", "cpu"):
        runs = cfg.from_config_dict(load("cifar10", preset)).runs.values()
        assert {(run.data.source, run.data.path) for run in runs} == {("tfds", "cifar10")}


def test_a_missing_key_without_default_is_named():
    values = load("quickstart", "adapter").to_dict()
    del values["runs"]["base"]["batch_size"]
    with pytest.raises(cfg.ConfigError, match="config.runs.base.batch_size is missing"):
        cfg.from_config_dict(values)


def test_reading_back_gives_the_same_config():
    for name, preset in FILES:
        values = load(name, preset)
        values.model = "somewhere"
        config = cfg.from_config_dict(values)
        assert cfg.from_config_dict(cfg.to_config_dict(config)) == config


def test_one_data_path_serves_every_run_that_names_none():
    values = load("laion", "tiny")
    values.data_path = "gs://bucket/a.tar"
    values.runs.sr.data.path = "gs://bucket/b.tar"
    config = cfg.from_config_dict(values)
    assert config.runs["base"].data.path == "gs://bucket/a.tar"
    assert config.runs["sr"].data.path == "gs://bucket/b.tar"


def test_encoders_of_the_runs_that_are_done_alone_must_be_there(tmp_path):
    values = load("laion")
    values.data_path = "0.tar"
    clip = tmp_path / "clip"
    clip.mkdir()
    values.encoders.clip.path = str(clip)
    values.runs.base.data.embeddings = "embeddings"
    config = cfg.from_config_dict(values)
    validate(config, "base")
    with pytest.raises(cfg.ConfigError, match="config.encoders.text.path .*no folder there"):
        validate(config, "sr")
    with pytest.raises(cfg.ConfigError, match="--run=top: must be one of base, sr"):
        validate(config, "top")


def test_kernels_are_checked_for_where_the_networks_will_run():
    values = load("quickstart", "adapter")
    values.runs.base.task.unet.attention_implementation = "flash"
    config = cfg.from_config_dict(values)
    validate(config, platform="tpu")
    validate(config, platform=None)
    with pytest.raises(ValueError, match="'flash': must be 'auto' or 'xla' on cpu"):
        validate(config)


def sections(kind, seen=None):
    seen = set() if seen is None else seen
    if dataclasses.is_dataclass(kind) and kind not in seen:
        seen.add(kind)
        for hint in typing.get_type_hints(kind).values():
            sections(hint, seen)
    for inner in typing.get_args(kind):
        sections(inner, seen)
    return seen


def test_every_key_is_read_by_something():
    code = "\n".join(path.read_text() for path in (ROOT / "contextdiff_jax").rglob("*.py"))
    unread = [
        f"{section.__name__}.{field.name}"
        for section in sections(cfg.Config)
        for field in dataclasses.fields(section)
        if not re.search(rf"\.{field.name}\b|\"{field.name}\"", code)
    ]
    assert not unread

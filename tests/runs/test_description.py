"""export.json of a stranger: every value is checked before anything is loaded or written."""

import copy
import json
import os
import pathlib
import shutil

import pytest

from configs import quickstart
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.export import read_export
from tests.fixtures.presets import preset_of_format_1

STAGE = {"step": 5, "encoders": {"text": "sha256:0"}}
CONTENT = {
    "format": 2,
    "dtype": "float32",
    "stages": {"base": STAGE, "sr": STAGE},
    "config": quickstart.get_config("adapter").to_dict(),
    "versions": {"jax": "0.8"},
}
OUTSIDE = {"../../x": STAGE}


def at(key, value):
    """Returns a change of export.json: of the value at a key with dots."""

    def change(content):
        *path, last = key.split(".")
        for name in path:
            content = content[name]
        content[last] = value

    return change


def renamed(old, new):
    """Returns a change: a stage of another name, everywhere."""

    def change(content):
        content["stages"] = {new: STAGE}
        runs = content["config"]["runs"]
        runs[new] = runs.pop(old)
        content["config"]["pipeline"] = ["clip", new]

    return change


BASE, SR = "config.runs.base", "config.runs.sr"
TASK = f"{BASE}.task"
REFUSED = {
    "a path up": (
        renamed("base", "../../x"),
        "has the name '../../x': must be at most 100 letters",
    ),
    "a long value of an unknown key": (
        at(f"{BASE}.evil", "y" * 10**6),
        "config.runs.base.evil = 'yyy",
    ),
    "a path down": (renamed("base", "x/y"), "has the name 'x/y': must be"),
    "an absolute path": (renamed("base", "/tmp/x"), "has the name '/tmp/x': must be"),
    "the folder above": (renamed("base", ".."), "has the name '..': must be"),
    "the folder": (renamed("base", "."), "has the name '.': must be"),
    "an empty name": (renamed("base", ""), "has the name '': must be"),
    "a name with a NUL": (renamed("base", "a\0"), "the key 'a\\x00' is over-long or cannot be"),
    "an escape code": (renamed("base", "\x1b[2J"), "the key '\\x1b[2J' is over-long or cannot be"),
    "a long name": (renamed("base", "a" * 101), "must be at most 100 letters"),
    "a stage that is no run": (at("stages", OUTSIDE), "export.stages has the name '../../x'"),
    "an unknown stage": (at("stages", {"top": STAGE}), "export.stages are top: must be the first"),
    "a contrastive stage": (at("stages", {"clip": STAGE}), "export.stages are clip: must be the"),
    "stages turned": (
        at("stages", {"sr": STAGE, "base": STAGE}),
        "export.stages are sr, base: must",
    ),
    "no stages": (at("stages", {}), "export.stages is empty: must hold one stage or more"),
    "stages a list": (at("stages", []), "export.stages = []: must be a section, is list"),
    "stage a number": (at("stages.base", 3), "export.stages.base = 3: must be a section"),
    "no encoders": (at("stages.base", {"step": 5}), "export.stages.base.encoders is missing"),
    "step a text": (at("stages.base.step", "5"), "export.stages.base.step = '5': must be int"),
    "no config": (lambda c: c.pop("config"), "export.config is missing"),
    "config a list": (at("config", []), "export.config = []: must be a section, is list"),
    "another format": (at("format", 3), "format = '3': must be one of 1, 2"),
    "no format": (lambda c: c.pop("format"), "format = 'None': must be one of 1, 2"),
    "an unknown key": (at("run_me", "x"), "export.run_me = 'x': unknown key"),
    "dtype": (at("dtype", "int8"), "export.dtype = 'int8': must be one of float32, bfloat16"),
    "width 0": (at(f"{TASK}.unet.width", 0), "config.runs.base.task.unet.width = 0"),
    "width -2": (at(f"{TASK}.unet.width", -2), "config.runs.base.task.unet.width = -2"),
    "width 2^40": (
        at(f"{TASK}.unet.width", 2**40),
        "unet.width = 1099511627776: must",
    ),
    "width NaN": (at(f"{TASK}.adapter.limit", float("nan")), "holds the number NaN"),
    "levels": (
        at(f"{TASK}.unet.multipliers", [1] * 99),
        "multipliers has 99 entries: must be",
    ),
    "blocks": (
        at(f"{TASK}.unet.num_blocks", 10**7),
        "num_blocks = 10000000: must be at",
    ),
    "resolution 2^20": (at(f"{BASE}.data.resolution", 2**20), "resolution = 1048576: must be at"),
    "low resolution": (at(f"{SR}.task.low_resolution", 8), "low_resolution = 8: must be"),
    "10^9 steps": (
        at(f"{TASK}.sampler.num_steps", 10**9),
        "num_steps = 1000000000: must be",
    ),
    "10^9 times": (
        at(f"{TASK}.diffusion.num_steps", 10**9),
        "num_steps = 1000000000: must be",
    ),
    "steps above T": (at(f"{TASK}.sampler.num_steps", 9999), "sampler.num_steps = 9999: "),
    "a sampler of another kind": (
        at(f"{TASK}.sampler.name", "x"),
        "sampler.name = 'x': must be one",
    ),
    "tokens": (at("config.encoders.text.max_length", 2**40), "max_length = 1099511627776: must be"),
    "an encoder outside": (at("config.encoders.clip.path", "run:../x"), "has the name '../x'"),
    "no network": (
        at(f"{TASK}.unet", None),
        "base.task.unet = None: must be a section",
    ),
    "no task": (
        at(TASK, {}),
        "config.runs.base.task.kind = None: must be one of",
    ),
    "an unknown task": (at(f"{TASK}.kind", "text_to_imag"), "did you mean text_to_image?"),
    "a task that is a list": (at(f"{TASK}.kind", []), "config.runs.base.task.kind = []: must"),
    "another task's section": (
        at(f"{TASK}.efficient_unet", {}),
        "config.runs.base.task.efficient_unet = {}: unknown key",
    ),
    "an old task of no name": (at(TASK, "x"), "task.kind = 'x': must be one of"),
    "a pipeline of nothing": (at("config.pipeline", []), "must be the first of (none)"),
    "a run that is not there": (at("config.pipeline", ["base", "q"]), "config.pipeline names 'q'"),
    "a long text": (at("config.name", "x" * 20_000), "must be at most 10000 characters"),
    "a text with a NUL": (
        at("config.data_path", "a\0"),
        "must be at most 10000 characters, no NUL",
    ),
    "many prompts": (
        at("config.samples.prompts", ["x"] * 100_001),
        "has 100001 entries: must be at",
    ),
    "many runs": (
        lambda c: c["config"]["runs"].update(
            {f"r{i}": c["config"]["runs"]["sr"] for i in range(99)}
        ),
        "config.runs has 102 entries: must be at most 64",
    ),
}


@pytest.fixture
def export(tmp_path):
    """Returns make(change) -> the folder of an export whose description is changed."""

    def make(change):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "export.json").write_text(json.dumps(content))
        return tmp_path

    return make


def test_what_an_export_writes_is_read(export):
    read, _ = read_export(export(lambda content: None))
    assert list(read.stages) == ["base", "sr"] and read.stages["base"].step == 5
    assert (
        read.config.runs["base"].task.unet.width
        == CONTENT["config"]["runs"]["base"]["task"]["unet"]["width"]
    )


def test_an_export_of_format_1_is_read_in_the_new_form(tmp_path):
    shutil.copy(pathlib.Path(__file__).parent / "format_1.json", tmp_path / "export.json")
    read, _ = read_export(tmp_path)
    assert read.config == from_config_dict(preset_of_format_1())


def test_a_key_of_format_1_beside_its_new_name_is_refused(tmp_path):
    content = json.loads((pathlib.Path(__file__).parent / "format_1.json").read_text())
    content["config"]["runs"]["base"]["adapter"] |= {"bound": 0.5, "limit": 0.5}
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="task.adapter.bound = 0.5: unknown key"):
        read_export(tmp_path)


def test_a_task_of_format_1_that_does_not_exist_is_refused_by_its_name(tmp_path):
    content = json.loads((pathlib.Path(__file__).parent / "format_1.json").read_text())
    content["config"]["runs"]["base"]["task"] = "text_to_imag"
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="task.kind = 'text_to_imag': .*did you mean text_to_im"):
        read_export(tmp_path)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_description_of_a_stranger_is_refused(kind, export):
    change, cause = REFUSED[kind]
    folder = export(change)
    with pytest.raises(ValueError) as error:
        read_export(folder)
    text = str(error.value)
    assert f"{folder}/export.json" in text and cause in text
    assert text.isprintable() and len(text) < 1500


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe{}", "is not JSON"),
        (b"[]", "holds a list: must hold a JSON object"),
        (b"null", "holds a NoneType: must hold a JSON object"),
        (b'{"format": 1e999}', "holds the number 1e999, must be finite"),
        (b'{"format": %s}' % (b"1" * 9999), "is not JSON"),
        (b'{"a":' * 99_999, "too deep"),
        (b'{"format": [[1]]}', "format = '[[1]]': must be one of 1, 2"),
    ],
)
def test_a_description_that_is_none_is_refused(data, cause, tmp_path):
    (tmp_path / "export.json").write_bytes(data)
    with pytest.raises(ValueError, match="export.json") as error:
        read_export(tmp_path)
    assert cause in str(error.value)


def test_a_description_that_would_block_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--export=.*: has no export.json: must be an export"):
        read_export(tmp_path)
    os.mkfifo(tmp_path / "export.json")
    with pytest.raises(ValueError, match="export.json' is no regular file"):
        read_export(tmp_path)


def test_sampling_a_strangers_export_writes_nothing_outside_and_ends_with_2(
    export, forks, tmp_path
):
    folder = export(renamed("base", "../../x"))
    done = forks("sample", f"--export={folder}", f"--output={tmp_path}/a/b", "--prompt=x")
    assert done.returncode == 2
    assert "has the name '../../x'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()

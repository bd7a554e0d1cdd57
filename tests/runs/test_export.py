"""Exports of stages that were trained by calls of their own; damage to an export is named."""

import json
import pathlib

import numpy as np
import pytest

from configs import quickstart
from contextdiff_jax.config import from_config_dict
from contextdiff_jax.runs.export import _described, export_pipeline, read_export
from contextdiff_jax.training import checksums
from contextdiff_jax.training.checkpoints import CheckpointError
from tests.fixtures.tiny_export import make_run, read_whole_export


def metadata(step):
    config = quickstart.get_config("adapter").to_dict()
    return {"step": step, "encoders": {"text": "x"}, "config": config, "versions": {"of": step}}


def test_every_stage_is_described_as_it_was_trained():
    found = {"base": metadata(1), "sr": metadata(2)}
    found["base"]["config"]["runs"]["base"]["task"]["diffusion"]["prediction"] = "v"
    found["sr"]["config"]["runs"]["sr"]["task"]["sampler"]["num_steps"] = 7
    described = _described(found)
    assert described["config"]["runs"]["base"]["task"]["diffusion"]["prediction"] == "v"
    assert described["config"]["runs"]["sr"]["task"]["sampler"]["num_steps"] == 7
    assert described["stages"]["base"] == {"step": 1, "encoders": {"text": "x"}}
    assert described["versions"] == {"of": 2}


def test_stages_that_do_not_go_together_are_refused():
    found = {"base": metadata(1), "sr": metadata(2)}
    found["sr"]["config"]["encoders"]["clip"]["path"] = "moved/elsewhere"
    _described(found)
    found["sr"]["config"]["use_adapter"] = False
    with pytest.raises(CheckpointError, match="'base' .there. and 'sr' .here. .*use_adapter: True"):
        _described(found)


@pytest.fixture
def export(tmp_path):
    """An export of one stage with an encoder, as a pipeline's end makes it."""
    make_run(tmp_path)
    return tmp_path / "export"


def test_every_file_has_a_checksum(export):
    listed = json.loads((export / checksums.NAME).read_text())["files"]
    assert set(listed) == {"export.json", "encoders/clip/model.safetensors", "base/checksums.json"}
    below = set(json.loads((export / "base" / checksums.NAME).read_text())["files"])
    files = (export / "base").rglob("*")
    assert below == {
        str(p.relative_to(export / "base"))
        for p in files
        if p.is_file() and p.name != checksums.NAME
    }


@pytest.mark.parametrize(
    "name",
    ["export.json", "encoders/clip/model.safetensors", "base/checksums.json", "base/_METADATA"],
)
@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: b"", None])
def test_damage_is_refused_by_the_name_of_the_file(name, harm, export):
    if harm is None:
        (export / name).unlink()
    else:
        (export / name).write_bytes(harm((export / name).read_bytes()))
    with pytest.raises(CheckpointError, match=f"damaged: .*{pathlib.Path(name).name}"):
        read_whole_export(export)


def test_an_export_without_checksums_is_read_and_a_users_own_files_are_let_be(export):
    (export / "README").write_text("drawn with 20 steps")
    (export / "encoders/notes").write_text("ours")
    content, _, _ = read_whole_export(export)
    for path in list(export.rglob(checksums.NAME)):
        path.unlink()
    again, stages, _ = read_whole_export(export)
    assert again == content and np.isfinite(stages["base"]["w"]).all()


def test_an_export_killed_half_way_over_another_is_none(export, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("contextdiff_jax.runs.export.save_tree", killed)
    config = from_config_dict(quickstart.get_config("test"))
    with pytest.raises(KeyboardInterrupt):
        export_pipeline(config, tmp_path, export)
    with pytest.raises(ValueError, match="has no export.json: must be an export"):
        read_export(export)

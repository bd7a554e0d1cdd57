"""Counting and timing the adapter at toy size; the counting itself against closed forms."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import adapter_overhead, stages
from benchmarks.configuration import load_config


def test_scans_are_counted_as_often_as_they_run():
    length, batch, width = 7, 5, 16

    def chain(weights, x):
        return jax.lax.scan(lambda carry, w: (carry @ w, None), x, weights)[0]

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((length, width, width), (batch, width))
    ]
    assert adapter_overhead.flops(chain, *shapes) == length * 2 * batch * width**2


def test_paper_encoders_have_their_published_sizes():
    config = load_config("laion")
    full = stages.abstract_stage(config, "sr", 1, adapter=True)
    parameters = {k: adapter_overhead.count(e.params) for k, e in full.task.encoders().items()}
    image, text = parameters["clip_image"], parameters["clip_text"]
    assert image + text + 512 * 512 == 151_277_313  # the text projection serves nobody here
    assert parameters["text"] == 4_762_310_656  # T5-XXL v1.1, the encoder
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(full.params))


def test_counting_command(tmp_path, capsys):
    path = tmp_path / "result.json"
    adapter_overhead.main(["--config=laion:tiny", "--stages=base", f"--json={path}"])
    result = json.loads(path.read_text())["base"]
    printed = capsys.readouterr().out
    assert printed.count("aim <= 5%") == printed.count("aim <= 2%") == 1
    training, sampling = result["training"], result["sampling"]
    # A gradient is about three calls of the network, a guided step two.
    assert 1.3 < training["without"] / sampling["without"] < 1.6
    # A gradient of the adapter is three calls of it, a sampling step two, each with one CLIP.
    clip = result["encoder_flops"]["clip_image"]
    in_training, in_sampling = (part["with"] - part["without"] for part in (training, sampling))
    assert (in_training - clip) / (in_sampling - clip) == pytest.approx(1.5, abs=0.2)


@pytest.mark.slow
def test_measuring_command(tmp_path):
    path = tmp_path / "result.json"
    flags = ["--measure", "--config=laion:tiny", "--stages=base", "--batch_size=2"]
    adapter_overhead.main([*flags, "--turns=1", "--seconds=0", f"--json={path}"])
    result = json.loads(path.read_text())
    assert "sr" not in result
    for what in ("training", "sampling"):
        assert result["base"][what]["ratio_of_medians"] > 0


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="stages = 'base,clip': the config has base, sr"):
        adapter_overhead.main(["--config=laion:tiny", "--stages=base,clip"])


def test_a_flow_which_has_no_adapter_is_refused():
    with pytest.raises(ValueError, match="runs.base.task.diffusion.kind = 'flow': must be 'vp'"):
        adapter_overhead.main(["--config=quickstart"])

"""Figures of layouts and in-context pictures: those of true pictures are known."""

import dataclasses

import numpy as np
import pytest

from benchmarks import paired_runs
from benchmarks.configuration import load_config
from benchmarks.placed_figures import PLACED, placed_figures
from contextdiff_jax.data.boxes import line_of
from contextdiff_jax.data.config import DataConfig, ScenesConfig
from contextdiff_jax.data.context_scenes import ContextScenesSource
from contextdiff_jax.data.scenes import boxes, make_scene, render
from contextdiff_jax.evaluation import box_accuracy
from contextdiff_jax.evaluation.in_context_scenes import agreement, look_of, look_wanted, others
from contextdiff_jax.runs.validation import validate


def test_true_pictures_have_the_figures_of_true_pictures():
    scenes = [make_scene(ScenesConfig(pairs=0.0), "test", index) for index in range(12)]
    pictures = np.stack([render(scene, 32) for scene in scenes])
    layouts = [line_of(boxes(scene)) for scene in scenes]
    measured = box_accuracy.measure({"base": pictures}, layouts, {})
    source = ContextScenesSource(
        DataConfig(resolution=32, split="test", scenes=ScenesConfig(pairs=0.0, context=1))
    )
    looks = [look_of(source[index].image) for index in range(12)]
    wanted = [look_wanted(source.shown(index)) for index in range(12)]
    values = {
        "own": agreement(looks, wanted, wanted),
        "context of another": agreement(looks, others(wanted), wanted),
        "query of another": agreement(looks, wanted, others(wanted)),
    }
    in_context = dataclasses.replace(measured, values={"context and query": values})
    found = paired_runs.figures({"boxes": measured, "in_context": in_context}, "base")
    assert found == placed_figures({"boxes": measured, "in_context": in_context}, "base")
    for name in ("boxes: colour_and_shape", "context and query: colour"):
        assert found[name] >= 0.9
    for name in ("boxes: colour_and_shape, shuffled", "colour of another's context"):
        assert found[name] < 0.5
    assert placed_figures({}, "base") == {}


def test_they_are_asked_for_by_their_names(tmp_path):
    asked = ["--output", str(tmp_path), "--config=layout:scenes", f"--what={','.join(PLACED)}"]
    args = paired_runs.parse([*asked, "--variants=none,bounded"])
    assert args.what == list(PLACED)


@pytest.mark.parametrize("name", ["layout:scenes", "in_context:scenes"])
def test_one_variant_has_the_adapter_and_one_has_none(name, tmp_path):
    """Also of a config that leaves it out by itself."""
    args = paired_runs.parse(["--output", str(tmp_path), f"--config={name}"])
    config, _, base = paired_runs.base_only(load_config(name), 0, args)
    adapters = [paired_runs.VARIANTS[each](config, base) for each in ("none", "bounded")]
    assert [each.use_adapter for each in adapters] == [False, True]
    for each in adapters:
        validate(each, files=False, platform=None)

"""Requests: what one must name, which values are allowed, and the sentence that says so."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest

from configs import classes
from contextdiff_jax.conditions.condition import Condition
from contextdiff_jax.conditions.low_resolution import LowResolution
from contextdiff_jax.conditions.requests import (
    check_requests,
    null_request,
    of_captions,
    one_line,
    values_of,
)
from contextdiff_jax.conditions.text import Text
from contextdiff_jax.config import ConfigError, SamplesConfig, from_config_dict
from contextdiff_jax.runs.build import asked_conditions
from contextdiff_jax.runs.validation import validate
from contextdiff_jax.tasks.diffusion_config import PreviewConfig
from contextdiff_jax.tasks.text_to_image import TextToImageConfig


@dataclasses.dataclass(frozen=True)
class Kind(Condition):
    """A condition that its config makes, and whose values are few."""

    name: ClassVar[str] = "kind"
    captioned: ClassVar[bool] = False
    null: ClassVar[int] = -1
    kinds: tuple[int, ...] = (1, 2)

    def check(self, value):
        if type(value) is not int or value not in self.kinds:
            raise ValueError(f"must be one of {', '.join(map(str, self.kinds))}")

    def collate(self, values, warn=False):
        return {"kind": np.array(values)}


BOTH = (Text, Kind(), LowResolution)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"text": "a"}, "request 2 lacks 'kind': must name text and kind$"),
        ({"text": "a", "kind": 1, "knd": 2}, "2 names 'knd': must .* kind; did you mean kind"),
        ({"text": "a", "kind": 1, "low_resolution": 2}, "2 names 'low_resolution': must name text"),
        ({"text": "a", "kind": 3}, "request 2 has kind = 3: must be one of 1, 2"),
        ({"text": 7, "kind": 1}, "request 2 has text = 7: must be a text"),
        ({"text": ["a"], "kind": 1}, r"request 2 has text = \['a'\]: must be a text"),
        ({}, "request 2 lacks 'text'"),
        ("a red circle", "request 2 is 'a red circle': must be a mapping from condition to value"),
    ],
)
def test_what_is_not_allowed_is_named(request_, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}" if "request" in sentence else sentence):
        check_requests([{"text": "", "kind": None}, request_], BOTH)


def test_stages_may_differ_in_what_they_allow():
    """A cascade's second stage may know fewer classes."""
    check_requests([{"kind": 1}], (Kind(), Kind((1, 3))))
    with pytest.raises(ValueError, match="kind = 2: must be one of 1, 3"):
        check_requests([{"kind": 2}], (Kind(), Kind((1, 3))))


def test_captions_are_values_of_the_one_captioned_condition():
    assert of_captions(["a", ""], (Text, LowResolution)) == [{"text": "a"}, {"text": ""}]
    with pytest.raises(ValueError, match="there are none of kind"):
        of_captions(["a"], (Kind(),))

    class Other(Text):
        name = "other"

    with pytest.raises(ValueError, match="there are other and text of text and other"):
        of_captions(["a"], (Text, Other))


def test_none_is_each_conditions_null():
    requests = [{"text": "a", "kind": 2}, null_request(BOTH)]
    assert requests[1] == {"text": None, "kind": None}
    assert values_of(requests, Kind()) == [2, -1]
    assert values_of(requests, Text) == ["a", ""]


def test_a_task_collates_what_its_own_conditions_are_given(make_task):
    task = make_task("sr")
    task = dataclasses.replace(task, conditions=(*task.conditions, Kind()))
    requests = [{"text": "a red circle", "kind": 2, "of_another_stage": 7}, null_request(BOTH)]
    found = task.collate_requests(requests)
    expected = task.collate(["a red circle", ""]) | {"kind": [2, -1]}
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_config_says_the_conditions_of_the_task_it_builds(make_config, make_task):
    config = make_config()
    for stage in ("base", "sr"):
        said = asked_conditions(config, [stage])
        assert said == [type(condition) for condition in make_task(stage).conditions]
    names = [condition.name for condition in asked_conditions(config, ["base", "sr"])]
    assert names == ["text", "text", "low_resolution"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picky(TextToImageConfig):
    """A task whose captions are of few classes, which its config knows."""

    class Label(Text):
        @staticmethod
        def check(value):
            if value not in ("rose", "tulip", ""):
                raise ValueError("must be one of rose, tulip")

    conditions = (Label,)


@pytest.mark.parametrize(
    ("key", "prompts"), [("samples.prompts", {}), ("runs.base.task.preview.prompts", {"every": 1})]
)
def test_what_a_run_draws_at_its_end_is_checked_at_its_start(key, prompts, make_config):
    config, wrong = make_config(), ("rose", "daisy")
    run = config.runs["base"]
    fields = {f.name: getattr(run.task, f.name) for f in dataclasses.fields(run.task)}
    if prompts:
        fields["preview"] = PreviewConfig(prompts=wrong, **prompts)
    run = dataclasses.replace(run, task=Picky(**fields))
    config = dataclasses.replace(
        config,
        runs={"base": run},
        pipeline=("base",),
        samples=SamplesConfig(prompts=("tulip",) if prompts else wrong),
    )
    with pytest.raises(
        ConfigError, match=f"config.{key}: request 2 has text = 'daisy': must be one of rose, tulip"
    ):
        validate(config, files=False, platform=None)


def test_a_class_is_checked_by_the_config_alone():
    """No network is built: an export's description is enough."""
    task = from_config_dict(classes.get_config("test")).runs["base"].task
    (label,) = dataclasses.replace(task, classes=("rose", "tulip")).conditions
    check_requests([{"label": "rose"}, {"label": ""}, {"label": None}], [label])
    with pytest.raises(
        ValueError, match="2 has label = 'rse': must be one of rose, tulip; did you"
    ):
        check_requests([{"label": "rose"}, {"label": "rse"}], [label])
    with pytest.raises(ValueError, match="request 1 has label = 3: must be a text"):
        check_requests([{"label": 3}], [label])


def test_a_request_in_one_line_for_people():
    assert one_line({"text": "a"}) == "a" and one_line({"text": None}) == ""
    assert one_line({"text": "ä", "kind": 1}) == '{"text": "ä", "kind": 1}'

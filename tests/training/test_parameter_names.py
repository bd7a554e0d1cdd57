"""Names and patterns of parameters, by hand."""

import numpy as np
import pytest

from contextdiff_jax.training.parameter_names import (
    by_name,
    check_patterns,
    copied,
    like,
    matches,
    merged,
    nested,
    without,
)

NAMES = (
    "adapter/blocks/query/kernel",
    "denoiser/down_0/attention/query/kernel",
    "denoiser/down_0/conv/kernel",
    "denoiser/attention/query/kernel",
    "denoiser/out/bias",
)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("denoiser", (1, 2, 3, 4)),
        ("denoiser/*", (1, 2, 3, 4)),
        ("denoiser/**", (1, 2, 3, 4)),
        ("**", (0, 1, 2, 3, 4)),
        ("denoiser/**/attn*", ()),
        ("denoiser/**/att*", (1, 3)),
        ("denoiser/*/att*", (1,)),
        ("*/attention", (3,)),
        ("**/kernel", (0, 1, 2, 3)),
        ("**/query/kernel", (0, 1, 3)),
        ("denoiser/down_[12]", ()),
        ("denoiser/down_?/conv", (2,)),
        ("denoise", ()),
        ("Denoiser", ()),
        ("denoiser/", ()),
        ("/denoiser", ()),
        ("", ()),
        ("denoiser/out/bias/more", ()),
    ],
)
def test_what_a_pattern_matches(pattern, found):
    assert tuple(i for i, name in enumerate(NAMES) if matches(name, [pattern])) == found
    assert [matches(name, ["no", pattern]) for name in NAMES] == [i in found for i in range(5)]


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest():
    check_patterns(["denoiser", "**/bias"], NAMES, "here")
    sentence = (
        r"^here has 'denoiser/down_0/attentoin', which matches no parameter: must be adapter, "
        r"denoiser, or a name below; did you mean denoiser/down_0/attention\?$"
    )
    with pytest.raises(ValueError, match=sentence):
        check_patterns(["denoiser", "denoiser/down_0/attentoin"], NAMES, "here")


def test_trees_are_taken_apart_and_put_together():
    tree = {"a": {"x": np.zeros(1), "y": np.ones(2)}, "b": np.full(3, 2.0)}
    part = {"a": {"y": np.full(2, 5.0)}}
    assert set(by_name(tree)) == {"a/x", "a/y", "b"}
    assert by_name(nested(by_name(tree))).keys() == by_name(tree).keys()
    assert set(by_name(without(tree, part))) == {"a/x", "b"}
    assert set(without(tree, {"a": tree["a"]})) == {"b"}
    assert set(by_name(like(tree, part))) == {"a/y"} and like(tree, part)["a"]["y"][0] == 1
    both = merged(tree, part)
    assert both["a"]["y"][0] == 5 and both["a"]["x"] is tree["a"]["x"] and both["b"] is tree["b"]
    assert tree["a"]["y"][0] == 1
    assert by_name(merged(without(tree, part), part)).keys() == by_name(tree).keys()


def test_copies_begin_with_what_they_are_copies_of():
    """A branch of a network: by name, where it is not taken itself and has the same shape."""
    taken = {"net/a": np.zeros(2), "net/b": np.ones(3), "net/branch/c": np.zeros(1)}
    target = {
        "net/a": np.zeros(2),
        "net/branch/a": np.zeros(2),
        "net/branch/b": np.zeros(4),  # of another shape
        "net/branch/c": np.zeros(1),  # taken itself
        "net/branch/zero": np.zeros(2),  # of its own
        "other/a": np.zeros(2),
    }
    found = copied(target, taken, {"net/branch/": "net/"})
    assert list(found) == ["net/branch/a"] and found["net/branch/a"] is taken["net/a"]
    assert copied(target, taken, {}) == {}

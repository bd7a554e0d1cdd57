"""Box accuracy: exact on rendered scenes, and each kind of mistake counts where it should."""

import dataclasses

import numpy as np
import pytest

from contextdiff_jax.data.boxes import line_of, parse_line
from contextdiff_jax.data.config import ScenesConfig
from contextdiff_jax.data.scenes import boxes, make_scene, render
from contextdiff_jax.evaluation.box_accuracy import box_accuracy, measure, overlap

SCENES = [make_scene(ScenesConfig(pairs=0.5), "test", index) for index in range(12)]
LAYOUTS = [line_of(boxes(scene)) for scene in SCENES]
PICTURES = np.stack([render(scene, 32) for scene in SCENES])


def test_true_scenes_are_right_everywhere_and_shuffled_ones_are_not():
    result = measure({"base": PICTURES}, LAYOUTS, {})
    found = result.values["base"]
    assert found["layouts"]["colour_and_shape"] == found["layouts"]["pictures"] == 1
    assert found["layouts"]["iou"] > 0.95
    assert found["layouts"]["boxes"] == sum(len(scene.things) for scene in SCENES)
    assert found["shuffled"]["colour_and_shape"] < 0.2 and found["shuffled"]["pictures"] == 0


def changed(**fields):
    """The first scene of one object, with its thing changed, against its own layout."""
    place = next(i for i, scene in enumerate(SCENES) if len(scene.things) == 1)
    thing = dataclasses.replace(SCENES[place].things[0], **fields)
    picture = render(dataclasses.replace(SCENES[place], things=(thing,)), 32)
    return box_accuracy(picture[None], [LAYOUTS[place]])


def test_each_mistake_counts_where_it_should():
    place = next(i for i, scene in enumerate(SCENES) if len(scene.things) == 1)
    x, y = SCENES[place].things[0].centre
    colour = changed(
        rgb=(130, 20, 140) if SCENES[place].things[0].colour != "purple" else (0, 0, 0)
    )
    assert colour.shares == {"placed": 1, "colour": 0, "shape": 1, "colour_and_shape": 0}
    moved = changed(centre=(1 - x if abs(x - 0.5) > 0.1 else x, 0.75 if y < 0.5 else 0.25))
    assert moved.shares["placed"] == moved.shares["colour_and_shape"] == 0 and moved.iou < 0.5
    nothing = box_accuracy(PICTURES[:1], [";"])
    assert nothing.boxes == 0 and nothing.pictures == 0  # there is an object, and no box of it


def test_a_further_object_spoils_the_picture_and_not_the_box():
    place = next(i for i, scene in enumerate(SCENES) if len(scene.things) == 2)
    one = line_of(parse_line(LAYOUTS[place])[:1])
    found = box_accuracy(PICTURES[place : place + 1], [one])
    assert found.shares["colour_and_shape"] == 1 and found.pictures == 0
    both = box_accuracy(
        PICTURES[place : place + 1], ["; ".join(reversed(LAYOUTS[place].split("; ")))]
    )
    assert both.pictures == 1


def test_two_boxes_are_not_given_the_same_object():
    place = next(i for i, scene in enumerate(SCENES) if len(scene.things) == 1)
    twice = f"{LAYOUTS[place]}; {LAYOUTS[place]}"
    assert box_accuracy(PICTURES[place : place + 1], [twice]).shares["colour_and_shape"] == 0.5


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0 and overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1


def test_as_many_pictures_as_layouts():
    with pytest.raises(ValueError, match="12 pictures for 1 layouts: must be as many"):
        box_accuracy(PICTURES, [";"])

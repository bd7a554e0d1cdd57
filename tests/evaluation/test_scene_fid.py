"""Crops of boxes: what is in them, in order, at the size that the features read."""

import numpy as np
from PIL import Image

from contextdiff_jax.data.boxes import parse_line
from contextdiff_jax.evaluation.scene_fid import SIDE, crops


def test_crops_are_what_is_in_the_boxes_in_order():
    rng = np.random.default_rng(0)
    quarters = np.zeros((2, 40, 60, 3), np.uint8)
    for picture in quarters:
        for rows in (slice(0, 20), slice(20, 40)):
            for columns in (slice(0, 30), slice(30, 60)):
                picture[rows, columns] = rng.integers(0, 256, 3)
    layouts = [parse_line("a 0 0 0.5 0.5; b 0.5 0.5 1 1"), parse_line("c 0.5 0 1 0.5")]
    found = crops(quarters, layouts)
    assert found.shape == (3, SIDE, SIDE, 3) and found.dtype == np.uint8
    inner = found[:, 5:-5, 5:-5]
    assert (inner[0] == quarters[0, 0, 0]).all() and (inner[1] == quarters[0, 39, 59]).all()
    assert (inner[2] == quarters[1, 0, 59]).all()
    whole = np.asarray(Image.fromarray(quarters[0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(crops(quarters[:1], [parse_line("a 0 0 1 1")])[0], whole)


def test_layouts_without_boxes_have_no_crops():
    assert crops(np.zeros((2, 8, 8, 3), np.uint8), [(), ()]).shape == (0, SIDE, SIDE, 3)

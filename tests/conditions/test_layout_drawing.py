"""Boxes over pictures: where their edges are, and the grid of samples that has them."""

import numpy as np
from PIL import Image

from contextdiff_jax.conditions.class_label import ClassLabel, LabelConfig
from contextdiff_jax.conditions.layout import Layout, LayoutConfig
from contextdiff_jax.conditions.layout_drawing import with_boxes
from contextdiff_jax.data.boxes import Box
from contextdiff_jax.generation.samples import write_pictures


def test_edges_are_drawn_where_the_box_is():
    picture = np.full((16, 16, 3), 255, np.uint8)
    found = with_boxes(picture, [Box("猫", (0.25, 0.5, 0.75, 1.0))])
    assert found.shape == (128, 128, 3) and picture.min() == 255
    drawn = (found < 255).any(axis=2)
    rows, columns = np.nonzero(drawn)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (32, 64, 95, 127)
    assert drawn[64, 32:96].all() and drawn[64:, 32].all() and not drawn[:64].any()
    large = np.zeros((200, 300, 3), np.uint8)
    assert with_boxes(large, ()).shape == large.shape


def test_the_grid_of_samples_is_there_with_boxes_too(tmp_path):
    layout = Layout(("cat",), LayoutConfig())
    requests = [{"layout": "cat 0 0 1 1"}, {"layout": None}]
    images = np.ones((2, 16, 16, 3), np.float32)
    write_pictures(tmp_path, images, requests, conditions=[layout])
    grid = np.asarray(Image.open(tmp_path / "grid_layout.png"))
    assert grid.shape == (132, 262, 3)
    assert (grid[:, :130] < 255).any() and (grid[:, 132:] == 255).all()
    label = ClassLabel(("cat", "dog"), LabelConfig())
    write_pictures(tmp_path / "label", images, [{"label": "cat"}] * 2, conditions=[label])
    assert not (tmp_path / "label" / "grid_label.png").exists()

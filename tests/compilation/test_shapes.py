"""Shapes of slices on offer, each asked of libtpu."""

import importlib.util
import subprocess
import sys

import pytest

from contextdiff_jax.compilation import shapes
from contextdiff_jax.parallel.topologies import CHIPS


def test_every_family_has_shapes_of_its_dimensions():
    assert set(shapes.OFFERED) == set(CHIPS)
    for family, offered in shapes.OFFERED.items():
        assert {shape.count("x") + 1 for shape in offered} == {CHIPS[family].axes}, family


@pytest.mark.parametrize("topology", ["v9:4x4", "cpu:0", "v5p:4x4"])
def test_a_wrong_name_lists_the_shapes_on_offer(topology):
    with pytest.raises(ValueError, match=f"topology '{topology}': must be") as refused:
        shapes.devices(topology, 1)
    listed = "v5p:2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8"
    assert listed in str(refused.value)
    assert ("v5e:2x2" in str(refused.value)) == (topology != "v5p:4x4")


CODE = """
import math
from contextdiff_jax.compilation import shapes
for family, offered in shapes.OFFERED.items():
    for shape in offered:
        chips = math.prod(map(int, shape.split("x")))
        found = len({tuple(d.coords) for d in shapes.devices(f"{family}:{shape}", 1)})
        assert found == chips, (family, shape, found)
for rule in ("v5e:2x6", "v6e:6x12", "v4:2x6x3", "v5p:4x2x5"):
    assert shapes.devices(rule, 1), rule
for refused in ("v5e:1x1", "v6e:3x4", "v4:1x1x1", "v5p:2x3x4"):
    try:
        shapes.devices(refused, 1)
    except ValueError as error:
        assert "Slices on offer" in str(error), error
    else:
        raise AssertionError(refused)
"""


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_libtpu_knows_every_shape_on_offer():
    subprocess.run([sys.executable, "-c", CODE], check=True)

"""The cost table, on figures made up here."""

import numpy as np
import pytest

from contextdiff_jax.evaluation import cost_table
from contextdiff_jax.evaluation.cost_table import StageCost

PLAIN = StageCost("base", False, {"denoiser": 100, "text": 7}, 10e9, 40e9, (1.0, 1.1, 0.9))
FULL = StageCost(
    *("base", True, {"denoiser": 100, "adapter": 6, "clip_image": 3, "text": 7}),
    *(10.5e9, 41e9, (1.9, 2.1, 2.0)),
)


def test_each_side_has_a_row_and_the_adapter_says_how_much_more():
    result = cost_table.measure([PLAIN, FULL], {}, {})
    plain, full = (
        dict(zip(cost_table._COLUMNS, row, strict=True)) for row in result.tables[0].rows
    )
    assert full["trained parameters"] == 106 and full["frozen encoders"] == 10
    assert plain["trained parameters"] == 100 and plain["time, more"] is None
    more = [full[name] for name in ("training, more", "sampling, more", "time, more")]
    assert more == ["+5.0%", "+2.5%", "+100.0%"]
    assert result.warnings == () and len(result.tables) == 1


def test_timings_that_spread_more_than_the_sides_differ_are_called_so():
    near = StageCost("base", True, FULL.parameters, 1.0, 1.0, (1.0, 1.3, 1.05))
    assert "more than the two sides differ" in cost_table.measure([PLAIN, near], {}, {}).warnings[0]


def test_training_time_is_of_the_median_rate():
    runs = {
        label: {"images_per_second": (np.arange(3), np.array(rates))}
        for label, rates in (("plain", [4.0, 5.0, 0.1]), ("adapter", [2.0, 2.5, 90.0]))
    }
    seconds = cost_table.training_seconds(runs)
    assert seconds == {"plain": 0.25, "adapter": 0.4}
    table = cost_table.measure([PLAIN, FULL], seconds, {}).tables[1]
    assert table.rows == (("plain", 0.25, None), ("adapter", 0.4, "+60.0%"))
    with pytest.raises(ValueError, match="run 'x' logged no images_per_second"):
        cost_table.training_seconds({"x": {}})

"""Which axes are logarithmic, and what numbers stand at them."""

import numpy as np
import pytest

from contextdiff_jax.evaluation import plots


def numbers_at(values, **settings):
    """Returns the scale of an axis that shows these values, and the numbers written at it."""
    (panel,) = plots.panels(1)
    panel.plot(np.arange(len(values)), values)
    plots.log_where_wide(panel, np.array(values, float), **settings)
    panel.get_figure().canvas.draw()
    low, high = panel.get_ylim()
    ticks = zip(panel.get_yticks(), panel.get_yticklabels(), strict=True)
    minor = zip(panel.get_yticks(minor=True), panel.get_yticklabels(minor=True), strict=True)
    shown = [text.get_text() for place, text in (*ticks, *minor) if low <= place <= high]
    return panel.get_yscale(), {text for text in shown if text}


@pytest.mark.parametrize(
    ("values", "spread", "scale"),
    [
        ([1.0, 19.9], plots.LOG_FROM, "linear"),
        ([1.0, 20.0], plots.LOG_FROM, "log"),
        ([0.5, 0.6], 1.0, "log"),
        ([0.0, 100.0], plots.LOG_FROM, "linear"),
        ([-1.0, 100.0], plots.LOG_FROM, "linear"),
        ([np.nan, np.inf], plots.LOG_FROM, "linear"),
        ([np.nan, 1.0, 30.0], plots.LOG_FROM, "log"),
    ],
)
def test_the_axis_is_logarithmic_where_values_differ_by_much(values, spread, scale):
    assert numbers_at(values, spread=spread)[0] == scale


def test_over_few_decades_numbers_stand_between_the_powers_of_ten():
    assert {"0.5", "1", "2", "5", "10"} <= numbers_at([0.4, 12.0])[1]


def test_over_many_decades_powers_of_ten_alone_have_a_number():
    scale, numbers = numbers_at([1e-6, 12.0])
    assert scale == "log"
    assert not any(text in numbers for text in ("2", "5"))

"""Curves from the CSV that training writes."""

import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.evaluation import curves
from contextdiff_jax.training.metrics import MetricLog


@pytest.fixture
def run(tmp_path):
    """Returns run(label, {name: values}) -> the folder of a run that logged them."""

    def make(label, metrics):
        folder = tmp_path / label
        folder.mkdir()
        log = MetricLog(folder)
        for index in range(len(next(iter(metrics.values())))):
            log.scalars(10 * (index + 1), {name: values[index] for name, values in metrics.items()})
        log.close()
        return folder

    return make


def test_what_training_logged_is_read_back(run):
    folder = run("a", {"loss": [0.5, 0.25, 0.125], "images_per_second": [1, 2, 3]})
    for path in (folder, folder / "metrics.csv"):
        steps, values = curves.read_metrics(path)["loss"]
        np.testing.assert_array_equal(steps, [10, 20, 30])
        np.testing.assert_array_equal(values, [0.5, 0.25, 0.125])


def test_half_a_last_row_is_left_out_other_damage_is_named(run):
    folder = run("a", {"loss": [0.5, 0.25]})
    file = folder / "metrics.csv"
    whole = file.read_text()
    file.write_text(whole + "30,lo")
    assert curves.read_metrics(folder)["loss"][0].tolist() == [10, 20]
    file.write_text(whole.replace("0.5", "half"))
    with pytest.raises(ValueError, match="line 2: must be step, name, value"):
        curves.read_metrics(folder)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no metrics.csv there; give the folder of one run"):
        curves.read_metrics(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,name,value\n")
    with pytest.raises(ValueError, match="holds no metrics yet"):
        curves.read_metrics(tmp_path)


def test_runs_are_plotted_and_tabulated_side_by_side(run, tmp_path):
    runs = {
        label: curves.read_metrics(run(label, {"loss": losses, label: losses, "learning_rate": lr}))
        for label, losses, lr in (("adapter", [2.0, 0.01], [1, 1]), ("plain", [2.0, 1.0], [1, 1]))
    }
    result = curves.measure(runs, (), tmp_path)
    assert result.values["last"] == {"loss": {"adapter": 0.01, "plain": 1.0}}
    assert result.tables[0].rows == (("loss", 0.01, 1.0), ("last step", 20, 20))
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # both lines are there
        assert (np.abs(picture - colour).sum(-1) < 30).sum() > 100


def test_a_metric_that_a_run_lacks_is_named(run):
    runs = {
        label: curves.read_metrics(run(label, {name: [1.0]}))
        for label, name in (("a", "x"), ("b", "y"))
    }
    with pytest.raises(ValueError, match="metric 'x': run 'b' has none, it has y"):
        curves.common_metrics(runs, ["x"])
    with pytest.raises(ValueError, match="a, b have no metric in common"):
        curves.common_metrics(runs, [])

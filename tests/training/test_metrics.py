"""TensorBoard files with and without TensorFlow; progress; grids."""

import io
import subprocess
import sys
import uuid

import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contextdiff_jax.spaces.pictures import grid, side_by_side, to_uint8
from contextdiff_jax.system.progress import Progress, duration
from contextdiff_jax.training import metrics


@pytest.mark.parametrize("tensorflow", [True, False])
def test_tensorboard_reads_what_is_written(tensorflow, tmp_path, monkeypatch):
    if tensorflow:  # as in a bucket
        pytest.importorskip("tensorflow", reason="clu's writer is TensorFlow's")
        monkeypatch.setattr(metrics, "in_bucket", lambda path: True)
    log = metrics.MetricLog(tmp_path)
    log.scalars(7, {"loss": 0.25})
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    log.image(7, "preview", picture)
    if not tensorflow:  # at once: TensorBoard may be looking
        events = EventAccumulator(str(tmp_path)).Reload()
        assert [(e.step, e.value) for e in events.Scalars("loss")] == [(7, 0.25)]
        [seen] = events.Images("preview/0")
        shown = np.asarray(Image.open(io.BytesIO(seen.encoded_image_string)))
        np.testing.assert_array_equal(shown, picture)
    log.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()
    assert "loss" in tags["scalars"] + tags["tensors"]
    assert any("preview" in tag for tag in tags["images"] + tags["tensors"])


def test_a_run_that_goes_on_adds_a_file(tmp_path):
    for step in (1, 2):
        code = (
            "from contextdiff_jax.training.metrics import EventFile\n"
            f"file = EventFile({str(tmp_path)!r})\n"
            f"file.write_scalars({step}, {{'loss': {step} / 4}}); file.close()\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list(tmp_path.iterdir())) == 2
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.25), (2, 0.5)]


def test_tensorboard_files_in_a_bucket_are_whole(tmp_path, monkeypatch, bucket):
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    log = metrics.MetricLog(epath.Path(bucket) / "run")
    for step in range(5):
        log.scalars(step, {"loss": 0.5 * step})
    log.close()
    (file,) = (epath.Path(bucket) / "run").glob("events.*")
    file.copy(tmp_path / file.name)
    found = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.value for event in found] == [0.5 * step for step in range(5)]


def test_the_next_preview_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / "preview").mkdir()
    (tmp_path / f"preview/00000007.png.{uuid.uuid4().hex}.tmp").write_bytes(b"half a picture")
    log = metrics.MetricLog(tmp_path, 0)
    log.image(7, "preview", np.zeros((2, 2, 3), np.uint8))
    log.close()
    assert [path.name for path in (tmp_path / "preview").iterdir()] == ["00000007.png"]


@pytest.mark.parametrize("where", ["local", "bucket"])
def test_rows_are_added_and_those_of_undone_work_dropped(where, tmp_path, bucket):
    path = epath.Path(tmp_path if where == "local" else bucket) / "metrics.csv"
    path.parent.mkdir(exist_ok=True)
    rows = metrics._Rows(path, 0)
    assert not path.exists()  # there is nothing to read before the first row
    rows.add([(1, "loss", "0.5")])
    rows.add([(2, "loss", "0.4"), (2, "size", "1.0")])
    with path.open() as file:
        text = file.read()
    assert text.split() == ["step,name,value", "1,loss,0.5", "2,loss,0.4", "2,size,1.0"]
    path.write_text(text + "3,lo")
    metrics._Rows(path, 1).add([(2, "loss", "0.3")])
    assert path.read_text().split() == ["step,name,value", "1,loss,0.5", "2,loss,0.3"]


def test_rate_and_time_left():
    times = iter([0.0, 2.0, 2.5, 10.0, 10.5, 20.0, 20.5])
    progress = Progress(100, 200, clock=lambda: next(times))
    assert progress.look(120) == (10.0, 8.0)
    with progress.pause():
        pass
    assert progress.look(130) == (10.0, 7.0)
    progress.restart(140)
    assert progress.look(160) == (40.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.4, "42 s"), (190, "3 min 10 s"), (7500, "2 h 05 min"), (float("inf"), "unknown")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_grids_place_images_row_by_row():
    images = np.stack([np.full((2, 2, 3), value, np.float32) for value in (-1, 0, 1, 3, 0.5)])
    picture = grid(images, columns=3, gap=1)
    assert picture.shape == (1 + 2 * 3, 1 + 3 * 3, 3)
    assert picture[1, 1, 0] == 0 and picture[1, 4, 0] == 128 and picture[4, 1, 0] == 255
    assert picture[0, 0, 0] == 255
    assert side_by_side(images, images).shape[1] == 2 * grid(images).shape[1] + 8
    np.testing.assert_array_equal(to_uint8(np.array([-9.0, 9.0])), [0, 255])


@pytest.mark.parametrize("in_bucket", [True, False])
def test_nothing_of_tensorflow_reaches_the_screen(in_bucket, tmp_path):
    """In a bucket it writes; elsewhere it is not even imported."""
    pytest.importorskip("tensorflow")
    code = (
        "import sys\n"
        "from contextdiff_jax.training import metrics\n"
        f"metrics.in_bucket = lambda path: {in_bucket}\n"
        f"log = metrics.MetricLog({str(tmp_path)!r})\n"
        "log.scalars(1, {'loss': 0.5}); log.close()\n"
        f"assert ('tensorflow' in sys.modules) == {in_bucket}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""

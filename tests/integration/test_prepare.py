"""Training on prepared text tokens, as a user does it, against encoding in the loop."""

import csv
import json

import numpy as np
import pytest

CONFIG = "--config=configs/quickstart.py:test"


@pytest.fixture(scope="module")
def flags(quickstart, shared_data):
    """A base run on real shards with the encoder of the finished quickstart."""
    encoder = quickstart[0] / "clip/encoder"
    return [
        CONFIG,
        "--run=base",
        "--config.runs.base.data.source=shards",
        f"--config.data_path={shared_data('emoji_shards')}",
        "--config.runs.base.data.limit=50",
        f"--config.encoders.text.path={encoder}",
        f"--config.encoders.clip.path={encoder}",
    ]


def losses(workdir):
    with (workdir / "base/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "loss"]
    return [float(row["value"]) for row in rows]


@pytest.mark.slow
def test_training_on_embeddings_is_training(flags, run, tmp_path):
    store = tmp_path / "embeddings"
    make = [*flags, f"--output={store}", "--shard_size=20", "--dtype=float32"]
    done = run("prepare", *make)
    assert done.returncode == 0, done.stderr
    assert "50 samples of shards" in done.stderr and "3 of them to do" in done.stderr
    assert "50 of 50 samples" in done.stderr and "a second, 0 s left" in done.stderr
    report = json.loads((store / "data_report.json").read_text())
    assert report["total_skipped"] == 0
    again = run("prepare", *make)
    assert again.returncode == 0 and "0 of them to do" in again.stderr, again.stderr

    alone = ["--config.runs.base.task.preview.every=0", "--config.runs.base.task.diagnose_every=0"]
    stored = [f"--config.runs.base.data.embeddings={store}"]
    for name, extra in (("loop", alone), ("stored", stored)):
        done = run("main", *flags, f"--workdir={tmp_path / name}", *extra)
        assert done.returncode == 0, done.stderr
        assert ("no text encoder is loaded" in done.stderr) == (name == "stored")
    assert (tmp_path / "stored/base/preview/00000004.png").exists()
    assert len(losses(tmp_path / "loop")) == 2
    np.testing.assert_allclose(losses(tmp_path / "stored"), losses(tmp_path / "loop"), rtol=1e-4)


@pytest.mark.slow
def test_beam_by_the_command(flags, run, tmp_path):
    pytest.importorskip("apache_beam", reason="requirements-beam.txt is not installed")
    more = ["--shard_size=20", "--dtype=float32"]
    runner = ["--runner=DirectRunner", "--", "--direct_num_workers=1"]
    found = []
    for name, beam in (("plain", []), ("beam", runner)):
        done = run("prepare", *flags, *more, f"--output={tmp_path / name}", *beam)
        assert done.returncode == 0, done.stderr
        shards = (tmp_path / name).glob("*.array_record")
        found.append({path.name: path.read_bytes() for path in shards})
    assert "00002-of-00003.array_record" in found[0] and found[1] == found[0]
    again = run("prepare", *flags, *more, f"--output={tmp_path / 'beam'}")
    assert "0 of them to do" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--run=clip"], "--run=clip: must be one of base, sr, the runs that read text encoders"),
        (["--run=base"], "encoder 'run:clip' is trained by the pipeline: give its --workdir"),
        (["--run=base", "--", "--region=x"], "'--region=x': must come with --runner, options"),
    ],
)
def test_preparing_refuses_in_one_sentence(arguments, sentence, forks, tmp_path):
    done = forks("prepare", CONFIG, f"--output={tmp_path}", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sentence in done.stderr

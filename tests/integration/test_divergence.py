"""A run whose loss is not finite goes on as its message says."""

import pytest

from contextdiff_jax.training.checkpoints import newest_metadata

pytestmark = pytest.mark.slow

RATE = "config.runs.clip.optimizer.learning_rate"
FLAGS = ("--config=configs/quickstart.py:test", "--run=clip", "--config.runs.clip.save_every=1")
FLAGS += ("--config.runs.clip.checkpoints_kept=4",)


def test_a_diverged_run_goes_on_at_a_lower_learning_rate(run, tmp_path):
    diverged = run("main", *FLAGS, f"--workdir={tmp_path}", f"--{RATE}=1e6")
    assert diverged.returncode == 3, diverged.stderr
    last = diverged.stderr.splitlines()[-1]
    # The rate is 0 at step 1 and immense at 2, so that 3 and 4 compute with immense weights.
    assert "not finite at step 4" in last and "from the checkpoint of step 3, or" in last
    for step in (2, 3):
        (tmp_path / f"clip/checkpoints/{step}").rename(tmp_path / f"moved away {step}")
    lower = run("main", *FLAGS, f"--workdir={tmp_path}", f"--{RATE}=0.001")
    assert lower.returncode == 0, lower.stderr
    assert f"from step 1 on {RATE} = 0.001, before 1000000.0" in lower.stderr
    metadata = newest_metadata(tmp_path / "clip/checkpoints")
    assert metadata["step"] == 4
    assert metadata["history"] == [{"step": 1, "key": RATE, "from": 1e6, "to": 0.001}]

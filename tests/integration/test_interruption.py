"""Kills at random moments and SIGTERM: the same command ends in the same bits."""

import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from contextdiff_jax.training.checkpoints import newest_ema
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

STEPS = 24
KILLS = int(os.environ.get("CONTEXTDIFF_KILLS", "2"))
LINES = 12  # of the log, before one of which a run is killed: to the middle of training
LONGEST = 1  # seconds that it lives on: into the next steps, or the writing of a checkpoint


def command(workdir, encoder):
    return [
        sys.executable,
        "-m",
        "contextdiff_jax.main",
        "--config=configs/quickstart.py:test",
        f"--workdir={workdir}",
        "--run=base",
        f"--config.runs.base.steps={STEPS}",
        f"--config.runs.base.save_every={STEPS // 4}",
        f"--config.encoders.clip.path={encoder}",
        f"--config.encoders.text.path={encoder}",
        "--config.runs.base.task.preview.every=0",
        "--config.runs.base.task.diagnose_every=0",
        "--config.use_adapter=False",  # compiled sooner; what is saved is of the same kinds
    ]


def final_weights(workdir):
    weights, metadata = newest_ema(workdir / "base/checkpoints")
    assert metadata["step"] == STEPS
    return weights


@pytest.fixture(scope="module")
def undisturbed(quickstart, tmp_path_factory):
    """The encoder to train with, and the final weights of an undisturbed run."""
    encoder = quickstart[0] / "clip/encoder"
    workdir = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(workdir, encoder), check=True, cwd=ROOT, capture_output=True)
    return encoder, final_weights(workdir)


def assert_same(ours, expected):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def killed_at(line, seconds, workdir, encoder):
    """Kills a training so long after so many of its lines in the log; returns whether it could."""
    process = subprocess.Popen(
        command(workdir, encoder), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    with process.stderr as log:
        own = (text for text in log if re.match(r"[IW]\d{4} .*\.py:", text))
        if next(itertools.islice(own, line, None), None) is not None:
            time.sleep(seconds)
            process.kill()
        code = process.wait()
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_killed_runs_end_bit_identical(undisturbed, tmp_path):
    """KILLS in all; a run that ends between two of them is compared, and a new one begun.

    What a run has logged says how far it is, on a loaded machine too.
    """
    encoder, expected = undisturbed
    rng = random.Random(0)
    killed, runs = 0, 0
    while killed < KILLS:
        workdir = tmp_path / str(runs)
        if killed_at(rng.randrange(LINES), rng.uniform(0, LONGEST), workdir, encoder):
            killed += 1
        else:
            assert_same(final_weights(workdir), expected)
            runs += 1
    last = command(tmp_path / str(runs), encoder)
    subprocess.run(last, check=True, cwd=ROOT, capture_output=True)
    assert_same(final_weights(tmp_path / str(runs)), expected)


def stopped(workdir, encoder):
    """Lets a training begin, sends SIGTERM and checks that it saved and said so."""
    process = subprocess.Popen(
        command(workdir, encoder), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "step 2:" in line:
            process.send_signal(signal.SIGTERM)
            break
    rest = process.stderr.read()
    assert process.wait() == 75, rest
    assert "the same command resumes" in rest


def resumed(workdir, encoder):
    """Gives the same command again and returns the final weights."""
    again = subprocess.run(
        command(workdir, encoder), check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert "resumed at step" in again.stderr
    return final_weights(workdir)


def test_sigterm_saves_says_so_and_resumes_after_a_full_disk_too(undisturbed, tmp_path):
    """A full disk stops with the reason and keeps the checkpoint."""
    encoder, expected = undisturbed
    stopped(tmp_path, encoder)

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    full = subprocess.run(
        command(tmp_path, encoder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
    )
    assert full.returncode == 4, full.stderr
    assert "could not be written" in full.stderr and "give the same command again" in full.stderr
    assert_same(resumed(tmp_path, encoder), expected)


def test_sigterm_before_the_first_step_says_what_it_ended(tmp_path):
    process = subprocess.Popen(
        [*command(tmp_path, "run:clip"), "--run=clip"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "run clip: contrastive" in line:
            process.send_signal(signal.SIGTERM)
            break
    last = process.stderr.read().splitlines()[-1]
    assert process.wait() == 75
    assert re.search(r"stopped on request while .* run clip; the same command starts that", last)

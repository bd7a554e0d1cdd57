"""Several processes: the same training as one, ended together, resumed on any number of devices."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from contextdiff_jax.evaluation.features import CHUNK, FeatureFiles
from contextdiff_jax.parallel.mesh import MeshConfig, make_mesh
from contextdiff_jax.training import checksums
from contextdiff_jax.training.checkpoints import load_tree, newest_metadata
from tests.conftest import ROOT
from tests.integration.train_squares import BATCH, train

pytestmark = pytest.mark.slow

STEPS = 12
HEARTBEAT_S = 5


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def slurm_environment(number, count, port):
    """What srun sets for one task, as far as JAX reads it."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


class Job:
    """Processes of one training that run side by side, four virtual devices each."""

    def __init__(self, workdir, *arguments, count=2, started=(0, 1), slurm=False):
        self.workdir = workdir
        workdir.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.integration.train_squares", f"--workdir={workdir}"]
        command += [f"--heartbeat_timeout_s={HEARTBEAT_S}", *map(str, arguments)]
        port = free_port()
        self.processes = {}
        for number in started:
            if slurm:
                place, environment = [], slurm_environment(number, count, port)
            else:
                environment = {}
                place = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
                place += [f"--process_id={number}"]
            with (workdir / f"log.{number}").open("w") as log:
                self.processes[number] = subprocess.Popen(
                    command + place,
                    cwd=ROOT,
                    env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"} | environment,
                    stderr=log,
                )

    def log(self, number):
        return (self.workdir / f"log.{number}").read_text()

    def wait_for(self, text, number=0, seconds=600):
        limit = time.monotonic() + seconds
        while text not in self.log(number):
            assert time.monotonic() < limit and self.processes[number].poll() is None, self.log(
                number
            )
            time.sleep(0.05)

    def end(self, seconds=600):
        """Returns the exit codes; kills what has not ended by then."""
        try:
            return {n: process.wait(seconds) for n, process in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()

    def last_line(self, number, seconds=60):
        """The last line of a log; the child that writes it ends just after its process."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and "contextdiff_jax: " not in self.log(number):
            time.sleep(0.05)
        return self.log(number).splitlines()[-1]


def final(workdir):
    assert newest_metadata(workdir / "checkpoints")["step"] == STEPS
    return load_tree(workdir / "checkpoints" / str(STEPS) / "state")


def losses(workdir):
    rows = csv.DictReader((workdir / "metrics.csv").open())
    return {int(row["step"]): float(row["value"]) for row in rows if row["name"] == "loss"}


def lines(path):
    return [line.split() for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The workdir of the same training by one process with eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    train(workdir, make_mesh(MeshConfig(2, 2, 2)), STEPS)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def incomplete(tmp_path_factory):
    """Jobs that wait, beside the other tests, for their third and their first process."""
    folder = tmp_path_factory.mktemp("incomplete")
    return (
        Job(folder / "third", "--join_timeout_s=10", count=3),
        Job(folder / "first", "--join_timeout_s=10", started=(1,)),
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training by two processes after a SIGTERM to the second: its workdir and exit codes."""
    job = Job(tmp_path_factory.mktemp("two") / "w", "--pause=0.15", f"--steps={STEPS}")
    job.wait_for("step 2:")
    job.processes[1].send_signal(signal.SIGTERM)
    return job, job.end()


def copy(workdir, folder):
    """A copy of a training to go on with, without its record of what was read."""
    target = folder / "copy"
    shutil.copytree(workdir, target, ignore=shutil.ignore_patterns("read.*", "log.*"))
    return target


def assert_as_one(workdir, one):
    for ours, theirs in zip(
        jax.tree.leaves(final(workdir)), jax.tree.leaves(final(one)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = losses(one)
    assert losses(workdir) == pytest.approx(expected, rel=1e-5) and len(expected) == STEPS


def test_sigterm_to_one_process_ends_all_at_the_same_saved_step(stopped):
    job, codes = stopped
    assert codes == {0: 75, 1: 75}, job.log(0) + job.log(1)
    step = newest_metadata(job.workdir / "checkpoints")["step"]
    assert 2 <= step < STEPS
    for number in (0, 1):
        assert f"stopped on request at step {step}, saved" in job.last_line(number)


def test_two_processes_train_as_one(stopped, one, tmp_path):
    """Losses, parameters and examples, across the stop."""
    before, _ = stopped
    step = newest_metadata(before.workdir / "checkpoints")["step"]
    job = Job(copy(before.workdir, tmp_path), f"--steps={STEPS}")
    assert job.end() == {0: 0, 1: 0}, job.log(0) + job.log(1)
    assert f"resumed at step {step}" in job.log(0)
    assert_as_one(job.workdir, one)
    read = [
        lines(before.workdir / f"read.{n}.txt")[:step] + lines(job.workdir / f"read.{n}.txt")
        for n in (0, 1)
    ]
    whole = lines(one / "read.0.txt")[:STEPS]
    assert [a + b for a, b in zip(*read, strict=True)][:STEPS] == whole
    assert len(whole[0]) == BATCH == 2 * len(read[0][0])
    assert "step 12:" in job.log(0) and "step 12:" not in job.log(1)  # process 0 speaks for all
    assert (job.workdir / "preview/00000012.png").exists()
    # Features: each file is one process's, and all are there.
    seen = [(job.workdir / f"seen.{n}").read_text().split() for n in (0, 1)]
    assert seen == [["0", str(2 * CHUNK)], [str(CHUNK), str(3 * CHUNK)]]
    found = FeatureFiles(job.workdir / "features", 3 * CHUNK + 5).all("mean")[:, 0]
    np.testing.assert_array_equal(found, np.arange(3 * CHUNK + 5) % 256)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 2, 2), (1, 1, 1)])
def test_a_checkpoint_of_two_processes_moves_to_one(shape, stopped, one, tmp_path):
    before, _ = stopped
    step = newest_metadata(before.workdir / "checkpoints")["step"]
    workdir = copy(before.workdir, tmp_path)
    devices = jax.devices()[: int(np.prod(shape))]
    train(workdir, make_mesh(MeshConfig(*shape), devices), STEPS)
    assert_as_one(workdir, one)
    assert lines(workdir / "read.0.txt")[: STEPS - step] == lines(one / "read.0.txt")[step:STEPS]


def test_a_checkpoint_of_one_process_moves_to_two(one, tmp_path):
    """The newest is damaged, which process 1 alone sees: both go back to the one before."""
    workdir = copy(one, tmp_path)
    flip_a_bit_for_process_1(workdir / "checkpoints" / str(STEPS))
    step = newest_metadata(workdir / "checkpoints")["step"]
    assert 0 < step < STEPS
    job = Job(workdir, "--mesh=4,2,1", f"--steps={STEPS}")
    assert job.end() == {0: 0, 1: 0}, job.log(0) + job.log(1)
    assert f"resumed at step {step}" in job.log(0)
    assert f"step {STEPS} is damaged (its files, as the log of process 1 says)" in job.log(0)
    assert "differs from when it was saved" in job.log(1)
    assert (workdir / f"checkpoints/{STEPS}.damaged").exists()
    assert_as_one(workdir, one)
    read = [lines(workdir / f"read.{n}.txt")[: STEPS - step] for n in (0, 1)]
    whole = lines(one / "read.0.txt")[step:STEPS]
    assert [a + b for a, b in zip(*read, strict=True)] == whole


def flip_a_bit_for_process_1(step):
    """Flips one in a file whose only chunk is process 1's of two to compare."""
    files = json.loads((step / checksums.NAME).read_text())["files"]
    assert all(len(values) == 2 for values in files.values())
    name = [name for name in sorted(files)[1::2] if "ocdbt" in name][-1]
    content = bytearray((step / name).read_bytes())
    content[-1] ^= 1
    (step / name).write_bytes(content)


def test_a_killed_process_ends_the_others_and_is_named(one, tmp_path):
    """Then the job goes on, as SLURM would start it, with `tensor` across the processes."""
    job = Job(tmp_path / "w", "--pause=0.15", f"--steps={STEPS}")
    job.wait_for("step 6:")
    job.processes[1].kill()
    started = time.monotonic()
    assert job.end() == {0: -signal.SIGABRT, 1: -signal.SIGKILL}, job.log(0)
    assert time.monotonic() - started < 60  # by default it would be 100 s
    assert "process 1 was lost (its own log says why)" in job.last_line(0)
    again = Job(job.workdir, "--mesh=1,1,8", f"--steps={STEPS}", slurm=True)
    assert again.end() == {0: 0, 1: 0}, again.log(0) + again.log(1)
    assert "resumed at step 4" in again.log(0)
    assert_as_one(job.workdir, one)


def test_a_process_that_never_joins_is_named(incomplete):
    third, first = incomplete
    assert third.end() == {0: -signal.SIGABRT, 1: -signal.SIGABRT}, third.log(0)
    for number in (0, 1):
        assert "process 2 did not join within 10 s: check that it" in third.last_line(number)
    assert first.end() == {1: -signal.SIGABRT}
    assert "could not join through process 0 within 10 s" in first.last_line(1)


@pytest.mark.timeout(0)  # it may have made quickstart too: on a loaded machine, half an hour
def test_local_sh_does_as_one_process_does(quickstart, tmp_path):
    """The pipeline but for super-resolution: its runs, the export, the samples.

    Diagnostics and previews of several processes are in test_two_processes_train_as_one.
    """
    command = ["bash", "launch/local.sh", f"--port={free_port()}", f"--log-dir={tmp_path}/logs"]
    command += [f"--python={sys.executable}", "--", "--config=configs/quickstart.py:test"]
    command.append("--config.pipeline=('clip', 'base')")
    command += [f"--config.runs.base.task.{key}=0" for key in ("diagnose_every", "preview.every")]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for run in ("clip", "base"):
        alone, together = (metrics_of(folder / run) for folder in (quickstart[0], tmp_path))
        alone.pop(("4", "last_steps_kl"), None)
        assert together.keys() == alone.keys() and ("4", "loss") in alone
        for key, value in together.items():
            if key[1] != "images_per_second":
                assert value == pytest.approx(alone[key], rel=1e-4, abs=1e-6), (run, key)
    drawn = sorted((quickstart[0] / "samples/base").rglob("*.png"))
    assert drawn
    for path in drawn:
        other = tmp_path / path.relative_to(quickstart[0])
        difference = np.abs(pixels(path) - pixels(other))
        assert difference.max() <= 2 and difference.mean() < 0.01, path


def pixels(path):
    return np.asarray(Image.open(path), np.float32)


def metrics_of(run):
    with (run / "metrics.csv").open() as file:
        return {(row["step"], row["name"]): float(row["value"]) for row in csv.DictReader(file)}

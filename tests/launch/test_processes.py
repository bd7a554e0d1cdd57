"""The scripts that run something, really run: local.sh, background.sh, train.sbatch, watch."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Notes its words and every SIGTERM, then does what $PLAN says for its process_id:
# "exit CODE", "wait" (ends with 75 on SIGTERM), "hang" (ignores it), "late" (75, a second later).
STAND_IN = """
import json, os, pathlib, signal, sys, time
rank = next((w.split("=")[1] for w in sys.argv if w.startswith("--process_id=")), "0")
note = pathlib.Path(os.environ["NOTES"]) / rank
plan = json.loads(os.environ["PLAN"])[rank]
terms = []
signal.signal(signal.SIGTERM, lambda *_: terms.append(1))
note.write_text(json.dumps({"words": sys.argv[1:], "pid": os.getpid(), "group": os.getpgid(0)}))
print("hello from", rank, flush=True)
def end(code):
    note.with_suffix(".end").write_text(f"{len(terms)} {code}")
    sys.exit(code)
if plan == "late":
    time.sleep(1)
    end(75)
if plan.startswith("exit"):
    while len(list(note.parent.glob("?"))) < len(json.loads(os.environ["PLAN"])):
        time.sleep(0.05)
    end(int(plan.split()[1]))
while plan == "hang" or not terms:
    time.sleep(0.05)
time.sleep(0.5)  # a second SIGTERM would be counted
end(75)
"""


class Trial:
    """local.sh over stand-ins; plan: what each process does."""

    def __init__(self, launch, folder):
        self.launch, self.notes, self.logs = launch, folder / "notes", folder / "logs"
        self.notes.mkdir()
        (folder / "stand_in.py").write_text(STAND_IN)
        self.environment = launch.environment | {
            "PYTHONPATH": str(folder),
            "NOTES": str(self.notes),
        }

    def start(self, plan, *options, words=()):
        plan = dict(enumerate(plan))
        return subprocess.Popen(
            [
                *("bash", str(ROOT / "launch/local.sh"), f"--processes={len(plan)}"),
                *("--module=stand_in", f"--python={sys.executable}", f"--log-dir={self.logs}"),
                *options,
                *("--", *words),
            ],
            env=self.environment | {"PLAN": json.dumps(plan)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where the tests run in the background, a shell has SIGINT ignored, for good.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def started(self, count):
        """What each process noted, once all have started."""
        files = [self.notes / str(i) for i in range(count)]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        return [json.loads(file.read_text()) for file in files]

    def ends(self):
        """Rank -> (number of SIGTERMs, exit code), for the processes that ended by themselves."""
        return {
            int(file.stem): tuple(map(int, file.read_text().split()))
            for file in self.notes.glob("*.end")
        }


def wait_until(condition, seconds=300):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def gone(pid):
    """Whether the process has ended (or waits only to be collected)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def trial(launch, tmp_path):
    return Trial(launch, tmp_path)


def test_local_starts_two_processes_that_know_each_other(trial):
    words = ["--config=a b", "--it=it's $HOME"]
    script = trial.start(["exit 0", "exit 0"], "--port=4321", words=words)
    output = script.communicate()[0]
    assert script.returncode == 0
    for rank, noted in enumerate(trial.started(2)):
        distributed = ["--distributed=explicit", "--coordinator=localhost:4321"]
        assert noted["words"] == [
            *words,
            *distributed,
            "--num_processes=2",
            f"--process_id={rank}",
        ]
    assert "hello from 0" in output and "hello from 1" not in output
    assert "hello from 1" in (trial.logs / "process-1.log").read_text()


@pytest.mark.parametrize("plan", [["wait", "exit 3"], ["exit 3", "wait"]])
def test_local_ends_the_others_when_one_fails(trial, plan):
    script = trial.start(plan)
    output = script.communicate()[0]
    assert script.returncode == 3
    rank = plan.index("exit 3")
    assert trial.ends() == {rank: (0, 3), 1 - rank: (1, 75)}
    # The end of a log that was not on the terminal is shown.
    assert ("hello from 1" in output) == (rank == 1)


def test_local_kills_what_does_not_end(trial):
    script = trial.start(["exit 4", "hang"], "--grace-s=1")
    script.communicate()
    assert script.returncode == 4
    assert gone(trial.started(2)[1]["pid"])


def test_local_lets_the_others_save_after_an_interrupted_one(trial):
    """Exit code 75: no process is signalled while it may still be saving."""
    script = trial.start(["exit 75", "late"])
    script.communicate()
    assert script.returncode == 75
    assert trial.ends() == {0: (0, 75), 1: (0, 75)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_to_every_process_once(trial, number):
    script = trial.start(["wait", "wait"])
    groups = {noted["group"] for noted in trial.started(2)}
    # Groups of their own: Ctrl-C on a terminal reaches the script alone.
    assert len(groups) == 2 and os.getpgid(script.pid) not in groups
    script.send_signal(number)
    script.communicate()
    assert script.returncode == 75
    assert trial.ends() == {0: (1, 75), 1: (1, 75)}


def test_local_really_joins_two_jax_processes(trial):
    """Two processes with the flags local.sh gives them form one JAX job and exchange arrays."""
    (trial.notes.parent / "stand_in.py").write_text(
        "import sys, jax\n"
        "flags = dict(word[2:].split('=', 1) for word in sys.argv[1:])\n"
        "rank, count = int(flags['process_id']), int(flags['num_processes'])\n"
        "jax.distributed.initialize(flags['coordinator'], count, rank)\n"
        "from jax.experimental import multihost_utils\n"
        "print('ranks', multihost_utils.process_allgather(jax.numpy.array([rank])).ravel())\n"
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    script = trial.start(["", ""], f"--port={port}", "--grace-s=5")
    output = script.communicate()[0]
    assert script.returncode == 0, output
    assert "ranks [0 1]" in output and "ranks [0 1]" in (trial.logs / "process-1.log").read_text()


def test_train_fetches_weights_once(launch, tmp_path):
    """In a copy of launch/, because weights/ appears beside it."""
    launch.path.joinpath("mv").symlink_to("/usr/bin/mv")
    launch.path.joinpath("cp").symlink_to("/usr/bin/cp")
    subprocess.run(["cp", "-r", ROOT / "launch", tmp_path / "launch"], check=True)
    (tmp_path / "bucket/clip").mkdir(parents=True)
    (tmp_path / "bucket/clip/model.safetensors").write_text("numbers")
    (tmp_path / "weights.part").mkdir()  # a copy that was cut off
    words = [
        *("bash", str(tmp_path / "launch/train.sh"), "--platform=cpu", "--module=this"),
        *(f"--python={sys.executable}", f"--weights=file://{tmp_path}/bucket/", "--"),
    ]
    for _ in range(2):
        done = subprocess.run(words, env=launch.environment, capture_output=True, text=True)
        assert "The Zen of Python" in done.stdout, done.stderr  # the module ran
        assert (tmp_path / "weights/clip/model.safetensors").read_text() == "numbers"
    assert "fsspec" not in done.stdout


def background(launch, action, log, *words):
    done = launch.script("background.sh", action, f"--log={log}", "--delay-s=0", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@pytest.mark.parametrize(
    ("code", "starts"),
    [(0, 1), (3, 1), (75, 3), (137, 3)],
)
def test_background_starts_again_only_what_can_pass(launch, tmp_path, code, starts):
    log = tmp_path / "a folder/train.log"
    assert background(launch, "status", log) == "not started"
    background(
        launch, "start", log, "--retries=2", "--", "bash", "-c", f"echo once more; exit {code}"
    )
    wait_until(lambda: background(launch, "status", log).startswith("ended"))
    assert background(launch, "status", log) == f"ended {code}"
    assert log.read_text().splitlines().count("once more") == starts


def test_background_stop_is_passed_on_and_final(launch, tmp_path):
    log = tmp_path / "train.log"
    program = "trap 'echo told; exit 75' TERM; echo up; while true; do sleep 0.1; done"
    background(launch, "start", log, "--retries=5", "--", "bash", "-c", program)
    wait_until(lambda: "\nup\n" in log.read_text())
    assert background(launch, "status", log) == "running"
    again = launch.script("background.sh", "start", f"--log={log}", "--", "true")
    assert again.returncode == 2 and "already running" in again.stderr
    assert background(launch, "stop", log) == "ended 75"
    assert log.read_text().splitlines().count("told") == log.read_text().count("\nup\n") == 1


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(75, "RUNNING", True), (75, "COMPLETING", False), (3, "RUNNING", False)],
)
def test_sbatch_requeues_what_was_saved(launch, code, state, requeued):
    launch.tool("srun", f'echo "devices=$JAX_LOCAL_DEVICE_IDS"; exit {code}')
    launch.tool("squeue", f"echo {state}")
    launch.tool("scontrol", "")
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
    done = launch.script("train.sbatch", "--config=a b", env=slurm)
    assert done.returncode == code
    assert launch.calls("scontrol") == (["requeue 17"] if requeued else [])
    [call] = launch.calls("srun")
    assert call.endswith("-- --config=a b --distributed=auto") and "devices=\n" in done.stdout
    done = launch.script("train.sbatch", env=slurm | {"SLURM_NTASKS_PER_NODE": "1"})
    assert "devices=0,1,2,3,4,5,6,7\n" in done.stdout


# Answers `describe` and the status on host 0 from the lines of answers, in turn.
GCLOUD = """
case "$*" in
  *describe*|*status*)
    head -n 1 "$ANSWERS"
    sed -i 1d "$ANSWERS"
    ;;
esac
"""


@pytest.mark.parametrize(("last", "code"), [("ended 0", 0), ("ended 3", 3)])
def test_watch_replaces_a_preempted_slice(launch, tmp_path, last, code):
    (launch.path / "head").symlink_to("/usr/bin/head")
    answers = tmp_path / "answers"
    story = ["ACTIVE", "ACTIVE", "running", "SUSPENDING", "SUSPENDED", "WAITING_FOR_RESOURCES"]
    answers.write_text("\n".join([*story, "ACTIVE", "new", "ACTIVE", last]) + "\n")
    launch.tool("gcloud", GCLOUD)
    launch.tool("git", "")  # the tests may run in a copy that is no repository
    done = launch.script(
        *("tpu_vm.sh", "watch", "--name=cd", "--zone=z", "--spot", "--poll-s=0"),
        *("--", "--config=configs/laion.py", "--workdir=gs://b/w"),
        env={"ANSWERS": str(answers)},
    )
    assert done.returncode == code, done.stderr
    calls = [call for call in launch.calls("gcloud") if "describe" not in call]
    verbs = [
        next(v for v in ("delete", "create", "scp", "tar", "start", "status") if f" {v} " in call)
        for call in calls
    ]
    assert verbs == ["status", "delete", "create", "status", "scp", "tar", "start", "status"]
    assert "--spot" in calls[2] and "--quiet" in calls[1]
    assert "cd still exists and costs money until: launch/tpu_vm.sh delete --name=cd" in done.stderr

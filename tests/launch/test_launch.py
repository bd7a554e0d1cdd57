"""What the launch scripts would run, what they refuse, and that compilers know their flags."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SOURCED = {"common.sh", "xla_flags.sh"}
SCRIPTS = sorted(file.name for file in LAUNCH.glob("*.sh") if file.name not in SOURCED)
# Words that a careless script breaks: spaces, quotes, braces, $, *, &, backslash.
TRAINING = [
    "--config=configs/laion.py:tiny",
    "--workdir=gs://bucket/a run",
    "--config.data_path=gs://bucket/{00000..41454}.tar",
    '--config.name=it\'s "$HOME" * & \\ ${NAME}',
]
ZONE = ["--name=cd", "--zone=us-west4-a", "--project=mine"]
PLACE = ["--zone=us-west4-a", "--project=mine"]


def option(command, name):
    """The value of --name=VALUE, which must be there once."""
    [value] = [word.split("=", 1)[1] for word in command if word.startswith(f"--{name}=")]
    return value


def after_dashes(words):
    return words[len(words) - words[::-1].index("--") :]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_option(launch, name):
    done = launch.script(name, "--help")
    assert done.returncode == 0 and not done.stderr
    [declared] = re.findall(r"declare -A OPTION=\((.*?)\)\n", (LAUNCH / name).read_text(), re.S)
    for key in [*re.findall(r"\[([a-z-]+)\]=", declared), "dry-run"]:
        assert f"--{key}" in done.stdout
    assert "set -euo pipefail" in (LAUNCH / name).read_text()


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    files = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "train.sbatch"])
    done = subprocess.run([shellcheck, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tpu_vm_create(launch):
    [command] = launch.dry("tpu_vm.sh", "create", *ZONE, "--accelerator=v5litepod-64", "--spot")
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "cd"]
    assert {*PLACE, "--spot", "--node-id=cd", "--accelerator-type=v5litepod-64"} <= {*command}
    assert option(command, "runtime-version") == "v2-alpha-tpuv5-lite"
    [command] = launch.dry("tpu_vm.sh", "create", *ZONE, "--direct", "--reserved")
    assert command[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "cd"]
    assert {*PLACE, "--reserved", "--accelerator-type=v5litepod-256"} <= {*command}
    assert "--spot" not in command and option(command, "version") == "v2-alpha-tpuv5-lite"


def test_tpu_vm_setup_and_start(launch):
    archive, copy, unpack = launch.dry("tpu_vm.sh", "setup", *ZONE)
    assert archive[:2] == ["git", "-C"] and archive[-1] == "HEAD"
    assert copy[4:7] == ["scp", option(archive, "output"), "cd:code.tar.gz"]
    assert {*PLACE, "--worker=all"} <= {*copy} and {*PLACE, "--worker=all"} <= {*unpack}
    assert option(unpack, "command").endswith("launch/setup_env.sh --platform=tpu")
    options = ["--retries=7", "--weights=gs://bucket/weights"]
    [start] = launch.dry("tpu_vm.sh", "start", *ZONE, *options, "--", *TRAINING)
    assert start[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "cd"]
    assert {*PLACE, "--worker=all"} <= {*start}
    remote = shlex.split(option(start, "command"))  # what the shell on the worker reads
    assert remote[:6] == ["cd", "contextdiff_jax", "&&", "bash", "launch/background.sh", "start"]
    assert {*options, "--platform=tpu"} <= {*remote}
    assert after_dashes(remote) == [*TRAINING, "--distributed=auto"]


def test_tpu_vm_logs_and_tear_down(launch):
    [follow] = launch.dry("tpu_vm.sh", "logs", *ZONE)
    assert option(follow, "worker") == "0" and "tail -n 100 -F" in option(follow, "command")
    _, collect = launch.dry("tpu_vm.sh", "logs", *ZONE, "--output=there")
    assert {"--worker=all", "--output-directory=there"} <= {*collect}
    done = launch.script("tpu_vm.sh", "delete", *ZONE, "--dry-run")
    assert shlex.split(done.stdout)[3:7] == ["queued-resources", "delete", "cd", "--force"]
    assert "deleting the TPU VM cd and its queued resource in us-west4-a" in done.stderr
    [command] = launch.dry("tpu_vm.sh", "delete", *ZONE, "--direct")
    assert command[3:6] == ["tpu-vm", "delete", "cd"] and {*PLACE} <= {*command}


def test_tpu_vm_with_several_slices(launch):
    place = [*ZONE, "--slices=2"]
    [create] = launch.dry("tpu_vm.sh", "create", *place)
    assert {"--node-count=2", "--node-prefix=cd"} <= {*create}
    assert not any(word.startswith("--node-id") for word in create)
    _, copy, unpack = launch.dry("tpu_vm.sh", "setup", *place)
    [start] = launch.dry("tpu_vm.sh", "start", *place, "--", *TRAINING)
    for command, verb in ((copy, "scp"), (unpack, "ssh"), (start, "ssh")):
        assert command[3:5] == ["queued-resources", verb]
        assert {"--node=all", "--worker=all"} <= {*command}
    [follow] = launch.dry("tpu_vm.sh", "logs", *place)
    assert {"--node=0", "--worker=0"} <= {*follow}
    commands = launch.dry("tpu_vm.sh", "logs", *place, "--output=there")
    for number, (folder, collect) in enumerate(zip(commands[::2], commands[1::2], strict=True)):
        assert folder == ["mkdir", "-p", f"there/cd-{number}"]
        assert collect[3:6] == ["tpu-vm", "ssh", f"cd-{number}"]
        assert option(collect, "output-directory") == folder[-1]
    assert len(commands) == 4
    done = launch.script("tpu_vm.sh", "delete", *place, "--dry-run")
    assert "deleting the 2 slices of cd and its queued resource" in done.stderr


def test_gke_and_xpk_with_several_slices(launch):
    place = [*ZONE, "--slices=2"]
    _, *pools, _, _ = launch.dry("gke.sh", "cluster", *place)
    names = ["cd-tpu-0", "cd-tpu-1"]
    assert [pool[4] for pool in pools] == names
    assert [words[4] for words in launch.dry("gke.sh", "delete", *place)] == [*names, "cd"]
    done = launch.script("gke.sh", "manifest", *place, "--image=r/i:1", "--", *TRAINING)
    [job] = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    assert job["replicas"] == 2 and job["template"]["spec"]["completions"] == 64
    xpk = ["--cluster=big", *PLACE, "--slices=2"]
    [cluster] = launch.dry("xpk.sh", "cluster", *xpk)
    [work] = launch.dry("xpk.sh", "start", *xpk, "--name=b", "--image=r/i:1", "--", *TRAINING)
    assert option(cluster, "num-slices") == option(work, "num-slices") == "2"


def test_gke_cluster_and_tear_down(launch):
    cluster, pool, _, jobset = launch.dry("gke.sh", "cluster", *ZONE, "--topology=8x16", "--spot")
    assert cluster[:5] == ["gcloud", "container", "clusters", "create", "cd"]
    assert pool[:5] == ["gcloud", "container", "node-pools", "create", "cd-tpu-0"]
    assert option(pool, "num-nodes") == "32" and option(pool, "tpu-topology") == "8x16"
    assert option(pool, "machine-type") == "ct5lp-hightpu-4t" and "--spot" in pool
    assert {"--location=us-west4-a", "--project=mine"} <= {*cluster} & {*pool}
    assert jobset[:2] == ["kubectl", "apply"] and jobset[-1].endswith("manifests.yaml")
    deleted = launch.dry("gke.sh", "delete", *ZONE)
    assert [words[2:5] for words in deleted] == [
        ["node-pools", "delete", "cd-tpu-0"],
        ["clusters", "delete", "cd"],
    ]
    assert launch.dry("gke.sh", "stop", *ZONE)[-1] == ["kubectl", "delete", "jobset", "cd"]


def test_gke_image(launch):
    archive, build, push = launch.dry("gke.sh", "image", "--image=r/i:1")
    assert build[:2] == ["bash", "-c"] and push == ["docker", "push", "r/i:1"]
    assert shlex.split(build[2])[-2:] == ["<", option(archive, "output")]
    assert "--tag=r/i:1" in build[2] and "--file=launch/Dockerfile" in build[2]


def test_gke_manifest(launch):
    arguments = [*ZONE, "--image=r/i:1", "--service-account=trainer", "--restarts=9"]
    done = launch.script("gke.sh", "manifest", *arguments, "--", *TRAINING)
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert jobset["kind"] == "JobSet" and jobset["metadata"]["name"] == "cd"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 9
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == 64 and spec["backoffLimit"] == 0
    [rule] = spec["podFailurePolicy"]["rules"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    # Kubernetes refuses a failure policy that names no container of the pod, or with restarts.
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never" and pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["image"] == "r/i:1"
    assert after_dashes(container["command"]) == [*TRAINING, "--distributed=auto"]
    assert container["command"][:3] == ["bash", "launch/train.sh", "--platform=tpu"]


def test_permanent_failures_are_those_of_the_entry_points():
    from contextdiff_jax import entry

    codes = [entry.EXIT_REFUSED, entry.EXIT_NOT_FINITE, entry.EXIT_CHECKPOINT]
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    [job] = jobset["spec"]["replicatedJobs"]
    [rule] = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == codes
    assert f'" 0 {" ".join(map(str, codes))} "' in (LAUNCH / "background.sh").read_text()
    assert f"code == {entry.EXIT_INTERRUPTED}" in (LAUNCH / "train.sbatch").read_text()


def test_xpk(launch):
    where = ["--cluster=big", *PLACE]
    [command] = launch.dry("xpk.sh", "cluster", *where, "--reservation=ours")
    assert command[:3] == ["xpk", "cluster", "create"]
    assert {*where, "--reservation=ours", "--tpu-type=v5litepod-256"} <= {*command}
    start = ["start", *where, "--name=base", "--image=r/i:1", "--accelerator=v5litepod-64"]
    [command] = launch.dry("xpk.sh", *start, "--", *TRAINING)
    assert command[:3] == ["xpk", "workload", "create"]
    assert {*where, "--workload=base", "--docker-image=r/i:1"} <= {*command}
    assert option(command, "tpu-type") == "v5litepod-64"
    assert option(command, "restart-on-exit-codes") == "75"
    train = shlex.split(option(command, "command"))
    assert train[:2] == ["exec", "bash"]
    assert after_dashes(train) == [*TRAINING, "--distributed=auto"]
    done = launch.script("xpk.sh", "delete", *where, "--dry-run")
    assert shlex.split(done.stdout)[:3] == ["xpk", "cluster", "delete"]
    assert "deleting the cluster big" in done.stderr


@pytest.mark.parametrize(("per", "tasks", "cpus"), [("gpu", "8", "6"), ("node", "1", "48")])
def test_slurm(launch, per, tasks, cpus):
    options = ["--nodes=2", f"--per={per}", "--cpus=6", "--partition=h100"]
    _, command = launch.dry("slurm.sh", "submit", *options, "--", *TRAINING)
    assert command[0] == "sbatch" and {"--nodes=2", "--partition=h100"} <= {*command}
    assert option(command, "ntasks-per-node") == tasks
    assert option(command, "cpus-per-task") == cpus and option(command, "gpus-per-node") == "8"
    assert option(command, "chdir") == str(ROOT)
    script = command.index(str(LAUNCH / "train.sbatch"))
    assert command[script + 1 :] == TRAINING
    assert launch.dry("slurm.sh", "cancel", "--job=17") == [["scancel", "17"]]


def test_local_gives_each_process_its_number_and_gpu(launch):
    arguments = ["--processes=3", "--platform=gpu", "--port=1234", "--", *TRAINING]
    commands = launch.dry("local.sh", *arguments)
    for i, command in enumerate(commands):
        assert command[:2] == ["env", f"CUDA_VISIBLE_DEVICES={i}"] and "--platform=gpu" in command
        distributed = ["--distributed=explicit", "--coordinator=localhost:1234"]
        numbers = ["--num_processes=3", f"--process_id={i}"]
        assert after_dashes(command) == [*TRAINING, *distributed, *numbers]
    assert len(commands) == 3
    [command] = launch.dry("local.sh", "--processes=1", "--platform=gpu", "--", *TRAINING)
    assert after_dashes(command) == [*TRAINING, "--distributed=none"]
    assert not any("CUDA_VISIBLE_DEVICES" in word for word in command)


def test_train_keeps_the_users_flags(launch):
    mine = {"XLA_FLAGS": "--xla_dump_to=/dump", "LIBTPU_INIT_ARGS": "--mine=1"}
    arguments = ["--platform=gpu", "--module=contextdiff_jax.prepare", "--", "--a=b c"]
    [command] = launch.dry("train.sh", *arguments, env=mine)
    [flags] = [word for word in command if word.startswith("XLA_FLAGS=")]
    assert flags.endswith(" --xla_dump_to=/dump") and "latency_hiding" in flags
    assert command[-3:] == ["-m", "contextdiff_jax.prepare", "--a=b c"]
    [command] = launch.dry("train.sh", "--platform=tpu", env=mine)
    assert "JAX_PLATFORMS=tpu,cpu" in command
    assert any(re.match("LIBTPU_INIT_ARGS=--xla.* --mine=1$", word) for word in command)


def test_setup_env(launch):
    extras = {"tpu": "jax[tpu]", "gpu": "jax[cuda13]", "cpu": "jax"}
    (launch.path / "python3.11").symlink_to(sys.executable)
    for platform, extra in extras.items():
        venv = f"--venv={launch.path}/venv"
        make, install, _ = launch.dry("setup_env.sh", f"--platform={platform}", venv)
        assert make == ["python3.11", "-m", "venv", f"{launch.path}/venv"]
        assert install[-4:] == ["-r", "requirements.txt", extra, "etils[epath-gcs]"]
    (launch.path / "python3.11").unlink()
    launch.tool("python3", "exit 1")  # too old
    _, make, *_ = launch.dry("setup_env.sh", "--platform=tpu", f"--venv={launch.path}/venv")
    assert make[:4] == ["python3", "-m", "uv", "venv"] and "--python=3.12" in make


PATHS = ["--", "--config=configs/laion.py", "--workdir=gs://b/w"]
REFUSED = [
    ("tpu_vm.sh", ["explode"], "explode: must be one of create"),
    ("tpu_vm.sh", [], "no action: must be one of create"),
    ("tpu_vm.sh", ["create", "--zone=z"], "--name is missing"),
    ("tpu_vm.sh", ["create", "--name=cd"], "--zone is missing"),
    ("tpu_vm.sh", ["create", "--name=C D", "--zone=z"], "--name=C D: must be"),
    ("tpu_vm.sh", ["create", *ZONE, "--spot", "--reserved"], "exclude each other"),
    ("tpu_vm.sh", ["create", *ZONE, "--sopt"], "--sopt: unknown option"),
    ("tpu_vm.sh", ["create", *ZONE, "--sopt=1"], "--sopt: unknown option"),
    ("tpu_vm.sh", ["create", *ZONE, "v5e"], "v5e: unexpected"),
    ("tpu_vm.sh", ["create", *ZONE, "--slices=0"], "--slices=0: must be a whole number in 1..1000"),
    ("tpu_vm.sh", ["create", *ZONE, "--slices=2", "--direct"], "--slices=2: needs a queued"),
    ("gke.sh", ["cluster", *ZONE, "--slices=two"], "--slices=two: must be a whole number"),
    ("gke.sh", ["cluster", *ZONE, "--chips-per-host=0"], "--chips-per-host=0: must be a whole"),
    ("gke.sh", ["cluster", *ZONE, "--topology=016x16"], "--topology=016x16: must be like 16x16"),
    ("gke.sh", ["cluster", *ZONE, "--topology=99999x16"], "--topology=99999x16: must be like"),
    ("gke.sh", ["cluster", *ZONE, "--spot=yes"], "--spot=yes: must be true or false"),
    (
        "gke.sh",
        ["manifest", *ZONE, "--image={a: b}", *PATHS],
        "--image={a: b}: must consist of letters",
    ),
    (
        "gke.sh",
        ["manifest", *ZONE, "--image=i", "--tpu=a #b", *PATHS],
        "--tpu=a #b: must consist of",
    ),
    (
        "gke.sh",
        ["manifest", *ZONE, "--image=i", *PATHS, "--config.name=a\nb"],
        "must not hold line ends",
    ),
    (
        "gke.sh",
        ["manifest", *ZONE, "--image=i", *PATHS, "--config.name=a\u2028b"],
        "must not hold line ends",
    ),
    ("gke.sh", ["manifest", *ZONE, "--image=i\n  privileged: 1", *PATHS], "must not hold line"),
    ("tpu_vm.sh", ["start", *ZONE, *PATHS, "--config.name=a\x1b[31mb"], "must not hold line"),
    (
        "tpu_vm.sh",
        ["wait", *ZONE, "--poll-s=-1"],
        "--poll-s=-1: must be a whole number in 0..86400",
    ),
    ("tpu_vm.sh", ["create start", *ZONE], "create start: must be one of create"),
    ("xpk.sh", ["status", "--cluster=c;ls", "--zone=z"], "--cluster=c;ls: must consist of letters"),
    ("slurm.sh", ["cancel", "--job=--all"], "--job=--all: must consist of letters"),
    ("slurm.sh", ["logs", "--job=1", "--name=../x"], "--name=../x: must consist of letters"),
    ("slurm.sh", ["submit", "--time=a day", *PATHS], "--time=a day: must be like 1-00:00:00"),
    ("slurm.sh", ["submit", "--cpus=08", *PATHS], "--cpus=08: must be a whole number in 1..1024"),
    ("local.sh", [f"--processes={10**20}", *PATHS], f"--processes={10**20}: must be a whole"),
    ("local.sh", [f"--processes={2**64 + 2}", *PATHS], "must be a whole number in 1..1024"),
    ("local.sh", ["--processes=08", *PATHS], "--processes=08: must be a whole number"),
    ("local.sh", ["--processes=+3", *PATHS], "--processes=+3: must be a whole number"),
    ("local.sh", ["--processes=1e3", *PATHS], "--processes=1e3: must be a whole number"),
    ("local.sh", ["--processes=", *PATHS], "--processes=: must be a whole number"),
    ("local.sh", ["--port=65536", *PATHS], "--port=65536: must be a whole number in 1..65535"),
    ("local.sh", ["--platform=cpu gpu", *PATHS], "--platform=cpu gpu: must be one of cpu gpu"),
    ("local.sh", ["--$(touch injected)=1", *PATHS], "unknown option"),
    ("local.sh", ["--grace-s=a[$(touch injected)]", *PATHS], "must be a whole number"),
    ("train.sh", ["--platform=cpu", "--module=-c"], "--module=-c: must consist of letters"),
    ("background.sh", ["start", "--log=x", "--retries=-1", "--", "ls"], "--retries=-1: must be"),
    ("tpu_vm.sh", ["start", *ZONE], "--config=FILE is missing"),
    ("tpu_vm.sh", ["start", *ZONE, *PATHS[:2]], "--workdir=DIR is missing"),
    ("tpu_vm.sh", ["start", *ZONE, *PATHS[:2], "--workdir=runs/x"], "must be a bucket"),
    ("tpu_vm.sh", ["start", *ZONE, *PATHS, "--process_id=1"], "sets this itself"),
    ("tpu_vm.sh", ["start", *ZONE, "--", "--config=no.py", "--workdir=gs://b"], "no file no.py"),
    ("gke.sh", ["start", *ZONE, *PATHS], "--image is missing"),
    ("gke.sh", ["cluster", "--name=cd", "--zone=z"], "--project is missing"),
    ("gke.sh", ["cluster", *ZONE, "--topology=256"], "--topology=256: must be like 16x16"),
    ("gke.sh", ["cluster", *ZONE, "--topology=3x3"], "9 chips are no whole number of hosts"),
    ("xpk.sh", ["start", "--cluster=c", "--zone=z", *PATHS], "--name is missing"),
    ("slurm.sh", ["submit", "--per=rack", *PATHS], "--per=rack: must be one of gpu node"),
    ("slurm.sh", ["submit", "--gpus=all", *PATHS], "--gpus=all: must be a whole number"),
    ("slurm.sh", ["cancel"], "--job is missing"),
    ("local.sh", ["--processes=0", *PATHS], "--processes=0: must be a whole number in 1..1024"),
    ("local.sh", ["--processes", *PATHS], "its value is missing"),
    ("train.sh", ["--platform=abacus"], "--platform=abacus: must be one of tpu gpu cpu"),
    ("setup_env.sh", [], "--platform is missing"),
    ("background.sh", ["start", "--log=x"], "no command"),
]


@pytest.mark.parametrize(("name", "arguments", "sentence"), REFUSED)
def test_bad_arguments_end_with_one_sentence(launch, name, arguments, sentence):
    """The sentence comes before anything is run, also without the cloud's tools."""
    action = arguments[:1] if arguments and not arguments[0].startswith("--") else []
    done = launch.script(name, *action, "--dry-run", *arguments[len(action) :])
    if not action and name == "tpu_vm.sh":
        done = launch.script(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "tool", "how"),
    [
        ("tpu_vm.sh", ["create", *ZONE], "gcloud", "cloud.google.com/sdk"),
        ("gke.sh", ["delete", *ZONE], "gcloud", "cloud.google.com/sdk"),
        ("gke.sh", ["image", "--image=i"], "docker", "docs.docker.com"),
        ("xpk.sh", ["delete", "--cluster=c", "--zone=z"], "xpk", "pip install xpk"),
        ("slurm.sh", ["submit", *PATHS], "sbatch", "login node"),
    ],
)
def test_missing_tools(launch, name, arguments, tool, how):
    done = launch.script(name, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tool} is not installed" in done.stderr and how in done.stderr


def flags_of(launch, platform):
    [command] = launch.dry("train.sh", f"--platform={platform}")
    words = dict(word.split("=", 1) for word in command[1 : command.index("-m") - 1])
    return {key: value for key, value in words.items() if key != "JAX_PLATFORMS"}


def test_xla_knows_the_gpu_flags(launch):
    """XLA parses the GPU's flags in every jaxlib, and ends the process at an unknown one."""
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    flags = flags_of(launch, "gpu")["XLA_FLAGS"]
    for more, known in [("", True), (" --xla_gpu_hide_all_latency=true", False)]:
        environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags + more}
        done = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == known, done.stderr


def test_libtpu_knows_the_tpu_flags(launch):
    """libtpu compiles for a TPU topology without a TPU, and refuses unknown flags."""
    pytest.importorskip("libtpu", reason="libtpu is not installed (pip install 'jax[tpu]')")
    program = (
        "from jax.experimental import topologies\n"
        "topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2')"
    )
    flags = flags_of(launch, "tpu")["LIBTPU_INIT_ARGS"]
    for more, known in [("", True), (" --xla_tpu_hide_all_latency=true", False)]:
        environment = os.environ | {
            "TPU_SKIP_MDS_QUERY": "1",  # no TPU machine is asked
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may be compiling for a TPU
            "LIBTPU_INIT_ARGS": flags + more,
        }
        environment.pop("JAX_PLATFORMS", None)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert (done.returncode == 0) == known, done.stderr

"""Fixtures every test may use: the compilation cache, and the optional real data."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from importlib import metadata

import threadpoolctl

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Children (entry points run as a user would run them) and other workers share compiled programs,
# the smallest too: there are thousands, and reading one takes half of compiling it or less.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "contextdiff_jax_compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Programs are compiled soon, not to run fast: that is most of the time. JAX reads this when
# it is imported; children and other workers inherit it. JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles
# what users run. The older of XLA's code generators takes half of the time, and a program in one
# piece less; an XLA that does not know the flags would end at once.
SOONER = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS = os.environ.get("XLA_FLAGS", "").replace(SOONER, "").strip()
AS_USERS_COMPILE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": XLA_FLAGS}
fewer = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
if fewer and metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{SOONER} {XLA_FLAGS}".strip()

# With `-n 2` each worker has its share of the processors: XLA and PyTorch begin as many threads as
# there are processors, and those of two workers on the same ones would wait for each other. Plugins
# have imported NumPy before, whose threads are there already.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    processors = sorted(os.sched_getaffinity(0))
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    own = processors[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
    os.sched_setaffinity(0, own or processors)
    threadpoolctl.threadpool_limits(len(os.sched_getaffinity(0)))

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import logging  # noqa: E402

from tests.fixtures import checked_shapes  # noqa: E402
from tests.oracles import torchvision_import  # noqa: E402

# Before anything of the package is imported.
checked_shapes.install()

# Several oracles import torchvision.
torchvision_import.make_importable()

# Eight virtual devices in this process, for meshes; children see the one real CPU.
jax.config.update("jax_num_cpu_devices", 8)

# nohup and shells in the background let SIGHUP and SIGINT be ignored, and children inherit it:
# tests that send them would wait for ever.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.fixtures.parameters",
    "tests.fixtures.pictures",
    "tests.fixtures.stable_diffusion",
    "tests.fixtures.tiny_tasks",
]

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = pathlib.Path(os.environ.get("CONTEXTDIFF_TEST_DATA", ROOT.parent / "shared" / "data"))


# Files of whole runs and large programs: begun first, so that none is left to one worker at the
# end. Those that use the finished pipeline stand apart, so that not all wait until it is made.
LONG = (
    "tests/integration/test_distributed.py",
    "tests/test_compile.py",
    "tests/integration/test_pipeline.py",
    "tests/docs/test_tutorials.py",
    "tests/integration/test_interruption.py",
    "tests/runs/test_in_context_runs.py",
    "tests/integration/test_evaluate.py",
    "tests/generation/test_video_editing.py",
    "tests/integration/test_main.py",
    "tests/tasks/test_meshes.py",
    "tests/networks/test_video.py",
    "tests/generation/test_clip_tuning.py",
    "tests/generation/test_control_video.py",
    "tests/runs/test_latent_runs.py",
    "tests/benchmarks/test_adapter_vs_plain.py",
    "tests/benchmarks/test_adapter_overhead.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2`: a file's tests share a worker and its fixtures, and LONG begins first."""
    from xdist.scheduler import LoadFileScheduling

    class LongFirst(LoadFileScheduling):
        def _assign_work_unit(self, node):
            left = next((path for path in LONG if path in self.workqueue), None)
            if left is not None:
                self.workqueue.move_to_end(left, last=False)
            super()._assign_work_unit(node)

    return LongFirst(config, log)


@pytest.fixture(autouse=True)
def log_as_before():
    """Leaves absl's verbosity as it was: a program that a test runs here may have set it."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def shared_data():
    """Returns path(relative) inside the optional test data; skips with a reason without it."""

    def path(relative: str) -> pathlib.Path:
        found = DATA / relative
        if not found.exists():
            pytest.skip(f"test data {relative!r} is not there (set CONTEXTDIFF_TEST_DATA)")
        return found

    return path


class Forks:
    """Entry points run by tests/command_line/forks.py: forks("main", "--help")."""

    def __init__(self):
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.command_line.forks"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, module, *arguments):
        print(json.dumps([module, *map(str, arguments)]), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        return subprocess.CompletedProcess(arguments, *json.loads(answer))

    def close(self):
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@pytest.fixture(scope="session")
def forks():
    """Runs entry points without importing JAX for each; returns a CompletedProcess."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of its own, s3://bucket, in memory; as there, appending overwrites."""
    import fsspec
    from etils.epath import backend, gpath
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        store, pseudo_dirs, protocol, cachable = {}, [""], "s3", False

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(os.fspath(path).removeprefix("s3:/"))

        def _open(self, path, mode="rb", **kwargs):
            return super()._open(path, mode.replace("a", "w"), **kwargs)

    filesystems = {"s3": Bucket(), "file": fsspec.filesystem("file")}
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **_: filesystems[name])
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # else TensorFlow would look
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield "s3://bucket"
    backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture(scope="session")
def latent_oracles():
    """diffusers' models of latent diffusion, see tests/encoders/latent_oracles.py."""
    pytest.importorskip("torch", reason="the oracle is diffusers' torch model")
    pytest.importorskip("diffusers", reason="the oracle is diffusers' torch model")
    from tests.encoders import latent_oracles

    return latent_oracles

"""Runs the launch scripts: without cloud tools on the path, or with recorded stand-ins for them."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What the scripts may use on any host. No gcloud, kubectl, xpk, docker, sbatch or srun.
COMMON = (
    *("bash", "env", "sed", "dirname", "date", "mkdir", "rm", "cat", "tail", "seq", "sleep"),
    *("git", "nohup", "setsid"),
)


class Launch:
    """path: the only folder on PATH. `script` runs one script, `dry` returns its printed words."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.environment = {"PATH": str(path), "HOME": os.environ["HOME"], "TMPDIR": str(path)}

    def tool(self, name: str, body: str) -> None:
        """Puts a stand-in on the path; it appends its words to calls.NAME before `body` runs."""
        file = self.path / name
        file.unlink(missing_ok=True)  # never write through a link to the real command
        file.write_text(f'#!/usr/bin/env bash\necho "$*" >> {self.path}/calls.{name}\n{body}\n')
        file.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        file = self.path / f"calls.{name}"
        return file.read_text().splitlines() if file.exists() else []

    def script(self, name: str, *arguments: str, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", str(ROOT / "launch" / name), *arguments],
            env=self.environment | more.pop("env", {}),
            capture_output=True,
            text=True,
            **more,
        )

    def dry(self, name: str, *arguments: str, **more) -> list[list[str]]:
        """The commands that the script would run, each split as a POSIX shell splits it."""
        action = [arguments[0]] if arguments and not arguments[0].startswith("--") else []
        done = self.script(name, *action, "--dry-run", *arguments[len(action) :], **more)
        assert done.returncode == 0, done.stderr
        return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.fixture
def launch(tmp_path):
    path = tmp_path / "bin"
    path.mkdir()
    for name in COMMON:
        (path / name).symlink_to(shutil.which(name))
    return Launch(path)

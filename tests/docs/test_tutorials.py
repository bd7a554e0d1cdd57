"""docs/architecture.md: "Add a task" and "Add a sampler" are done, as printed, in a copy."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def blocks(heading):
    """Returns (language, text) of every block of a section, in order."""
    section = re.split(r"^## ", PAGE, flags=re.M)
    (text,) = (part for part in section if part.startswith(heading + "\n"))
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)


def apply(folder, language, text):
    """Does what a block says: writes a file, changes lines, or runs commands."""
    if language == "python":
        path = re.match(r"# (\S+)\n", text).group(1)
        assert not (folder / path).exists()
        (folder / path).write_text(text.partition("\n")[2])
    elif language == "diff":
        for change in re.split(r"^--- ", text, flags=re.M)[1:]:
            path, *lines = change.splitlines()
            old, new = (
                "\n".join(line[1:] for line in lines if line[0] == sign) for sign in ("-", "+")
            )
            source = (folder / path).read_text()
            assert source.count(old) == 1
            (folder / path).write_text(source.replace(old, new))
    else:
        assert language == "sh"
        for command in text.strip().splitlines():
            program, *words = shlex.split(command)
            assert program == "python"
            done = subprocess.run(
                [sys.executable, *words],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(folder)},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package and its configs, in which "Add a task" was done."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("contextdiff_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for block in blocks("Add a task"):
        apply(folder, *block)
    return folder


def test_the_task_is_trained_drawn_and_measured(copy):
    assert (copy / "runs" / "painter" / "samples" / "base" / "0001.png").exists()
    assert (copy / "runs" / "check" / "report.html").exists()


def test_the_sampler_draws_what_ddim_draws(copy):
    """Without a relation the two are the same in exact arithmetic."""
    for block in blocks("Add a sampler"):
        apply(copy, *block)
    ddim, edm = (
        np.asarray(Image.open(copy / "runs" / name / "base" / "0000.png"), np.float32)
        for name in ("ddim", "edm")
    )
    assert np.ptp(ddim) > 10 and np.abs(ddim - edm).max() <= 1

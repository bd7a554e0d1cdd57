"""The command `contextdiff`: what it runs and refuses, and what an installed wheel finds."""

import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import contextdiff_jax
from contextdiff_jax.__main__ import COMMANDS
from tests.conftest import ROOT


def contextdiff(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "contextdiff_jax", *arguments],
        capture_output=True,
        text=True,
        cwd=more.pop("cwd", ROOT),
        env=os.environ | more,
    )


def test_every_entry_point_has_its_command():
    found = {
        path.stem
        for path in (ROOT / "contextdiff_jax").glob("*.py")
        if 'if __name__ == "__main__":' in path.read_text() and path.stem != "__main__"
    }
    assert {module for module, _ in COMMANDS.values()} == found


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "'trian': must be one of train, sample, .*; did you mean train?"),
        ([], "a command is missing: must be one of train, sample, "),
        (["--config=x.py"], "'--config=x.py': must be one of train, "),
        (["\x1b[31mtrain"], r"'\\x1b\[31mtrain': must be one of"),
    ],
)
def test_what_is_no_command_is_refused_in_one_sentence(arguments, sentence):
    done = contextdiff(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert re.match(f"contextdiff_jax: {sentence}", done.stderr), done.stderr


def test_help_and_version():
    shown = contextdiff("--help").stdout
    assert all(f"contextdiff {name} " in shown for name in COMMANDS)
    assert contextdiff("--version").stdout.split() == [
        "contextdiff_jax",
        contextdiff_jax.__version__,
    ]


def test_a_command_is_its_module():
    done = contextdiff("sample", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Draws pictures") and "--prompts:" in done.stdout


def test_every_version_that_is_written_down_is_this_one():
    """contextdiff_jax.__version__ is the source; these files cannot read it."""
    found = {
        "CITATION.cff": r"^version: (\S+)$",
        "CHANGELOG.md": r"\A(?:(?!## ).*\n)*## ([\d.]+)",  # the newest heading
        "docs/data.md": r"contextdiff_jax-([\d.]+)-py3",
    }
    for name, pattern in found.items():
        versions = re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert set(versions) == {contextdiff_jax.__version__}, name


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the wheel, as pip lays it out: beside no clone."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    tmp = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp / "site")
    return tmp / "site"


def test_the_wheel_holds_the_package_and_the_configs(installed):
    def files(root):
        return {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    configs = {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(installed / "contextdiff_jax") == files(ROOT / "contextdiff_jax") | configs
    others = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert others == {"contextdiff_jax"}  # no tests, no benchmarks


def read(lines):
    """Returns {(name, versions)} of requirements, however they are written."""
    found = map(Requirement, lines)
    return {(canonicalize_name(each.name), str(each.specifier)) for each in found}


def test_the_wheel_asks_for_what_the_requirements_files_do(installed):
    (info,) = installed.glob("*.dist-info")
    found = importlib.metadata.PathDistribution(info)
    assert found.version == contextdiff_jax.__version__
    base = (ROOT / "requirements-base.txt").read_text().splitlines()
    wanted = [line.partition("#")[0] for line in base if not line.startswith("#")]
    asked = [line for line in found.requires if "extra ==" not in line]
    assert read(asked) == read(wanted)
    extras = set(found.metadata.get_all("Provides-Extra"))
    assert extras == {"tpu", "cuda", "gcs", "tensorboard", "video", "beam", "docs", "test"}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("configs/quickstart.py:tset", "preset 'tset': must be one of"),
        ("configs/quikstart.py", "no such file; did you mean configs/quickstart.py?"),
        ("other/quickstart.py", "no such file"),
    ],
)
def test_an_installed_command_finds_the_configs_outside_the_clone(
    installed, tmp_path, config, sentence
):
    arguments = ["train", f"--config={config}", "--workdir=runs"]
    done = contextdiff(*arguments, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]


def test_a_config_that_is_there_goes_before_the_installed_one(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.py").write_text("def get_config():\n    return 1\n")
    arguments = ["train", "--config=configs/quickstart.py", "--workdir=runs"]
    done = contextdiff(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2 and "get_config returns int" in done.stderr

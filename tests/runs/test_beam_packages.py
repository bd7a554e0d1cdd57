"""Beam's workers get a wheel of this package, or the command ends before anything is read."""

import zipfile

import pytest

import contextdiff_jax
from contextdiff_jax.runs.beam_packages import check_packages

WHEEL = f"contextdiff_jax-{contextdiff_jax.__version__}-py3-none-any.whl"


@pytest.fixture
def dist(tmp_path):
    """A folder with wheels, and with files that are none."""
    for name in (WHEEL, "contextdiff_jax-0.0.1-py3-none-any.whl", "other-2.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("a.py", "")
    (tmp_path / "renamed.whl").write_bytes((tmp_path / WHEEL).read_bytes())
    (tmp_path / "cut.whl").write_bytes((tmp_path / WHEEL).read_bytes()[:20])
    (tmp_path / "contextdiff_jax-0.1.0.tar.gz").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--extra_package={dist}/none.whl"], "none.whl: no such file"),
        (["--extra_package", "{dist}/none.whl"], "none.whl: no such file"),
        (["--extra_package={dist}/cut.whl"], "cut.whl: must be a wheel, as pip wheel --no-deps"),
        (["--extra_package={dist}/renamed.whl"], "renamed.whl: must be a wheel, as pip wheel"),
        (["--extra_package={dist}/contextdiff_jax-0.1.0.tar.gz"], "tar.gz: must be a wheel, as"),
        (["--extra_package={dist}"], ": must be a wheel, as"),
        (["--extra_package"], "--extra_package=: no such file"),
        (
            ["--extra_package={dist}/contextdiff_jax-0.0.1-py3-none-any.whl"],
            f"must be version {contextdiff_jax.__version__}, which runs here",
        ),
        (
            ["--project=P"],
            "--runner=DataflowRunner: needs --extra_package=WHEEL after the --, as its workers",
        ),
    ],
)
def test_what_workers_cannot_install_is_refused(options, sentence, dist):
    with pytest.raises(ValueError) as refusal:
        check_packages("DataflowRunner", [option.format(dist=dist) for option in options])
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("runner", "options"),
    [
        ("DataflowRunner", ["--project=P", f"--extra_package={{dist}}/{WHEEL}"]),
        ("DataflowRunner", ["--extra_package", f"{{dist}}/{WHEEL}"]),
        ("DataflowRunner", ["--extra_package={dist}/other-2.0-py3-none-any.whl"]),
        ("DataflowRunner", ["--extra_package=gs://bucket/anything.whl"]),
        ("DataflowRunner", ["--sdk_container_image=image"]),
        ("DirectRunner", []),
        ("FlinkRunner", ["--environment_type=LOOPBACK"]),
    ],
)
def test_what_they_can_is_let_through(runner, options, dist):
    check_packages(runner, [option.format(dist=dist) for option in options])


def test_the_command_ends_with_the_sentence(forks, tmp_path):
    flags = ["--config=configs/quickstart.py:test", "--run=base", f"--output={tmp_path}/out"]
    done = forks("prepare", *flags, "--runner=DirectRunner", "--", "--extra_package=none.whl")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--extra_package=none.whl: no such file")
    assert not (tmp_path / "out").exists()

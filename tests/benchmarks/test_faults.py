"""Faults on purpose: each still applies, and what comes of one is told truly."""

import ast

import pytest

from benchmarks import faults
from benchmarks.faults import ROOT, Fault, judge


@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda fault: fault.name)
def test_every_fault_applies(fault, tmp_path):
    (tmp_path / "contextdiff_jax" / fault.file).parent.mkdir(parents=True)
    target = tmp_path / "contextdiff_jax" / fault.file
    target.write_text((ROOT / "contextdiff_jax" / fault.file).read_text())
    fault.apply(tmp_path)
    ast.parse(target.read_text())
    assert all((ROOT / test).exists() for test in fault.tests)


def test_there_are_ten_in_rooms_of_their_own():
    assert len({fault.name for fault in faults.FAULTS}) == 10
    rooms = {fault.file.partition("/")[0] for fault in faults.FAULTS}
    assert rooms == {"diffusion", "sampling", "networks", "training", "evaluation"}


@pytest.fixture
def repository(tmp_path):
    """A package of one function, with a test that sees its sign and a slow one that sees all."""
    (tmp_path / "contextdiff_jax").mkdir()
    (tmp_path / "contextdiff_jax/signs.py").write_text("def f(x):\n    return -x\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_signs.py").write_text(
        "import pytest\nfrom contextdiff_jax.signs import f\n"
        "def test_sign():\n    assert f(2) < 0\n"
        "@pytest.mark.slow\ndef test_all():\n    assert f(2) == -2\n"
    )
    ini = '[tool.pytest.ini_options]\npythonpath = ["."]\nmarkers = ["slow: is"]\n'
    (tmp_path / "pyproject.toml").write_text(ini)
    return tmp_path


@pytest.mark.parametrize(
    ("after", "result", "line"),
    [
        ("return x", "caught", "tests/test_signs.py::test_sign"),
        ("return -3 * x", "escaped", "1 passed, 1 deselected"),
        ("return -", "broken", "error"),
    ],
)
def test_what_came_of_a_fault(repository, after, result, line):
    fault = Fault("sign", "signs.py", "return -x", after, ("tests/test_signs.py",))
    found, said = judge(fault, repository)
    assert found == result and line in said
    assert "return -x" in (repository / "contextdiff_jax/signs.py").read_text()


def test_a_fault_that_no_longer_applies_is_named(repository):
    with pytest.raises(ValueError, match=r"fault sign: 'return 1' is 0 times in signs.py, must be"):
        judge(Fault("sign", "signs.py", "return 1", "return 2", ()), repository)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="--only=nothing: must be one of posterior, step, "):
        faults.main(["--only=nothing"])


def test_tests_that_fail_by_themselves_show_nothing(repository, monkeypatch):
    fault = Fault("sign", "signs.py", "-x", "x", ("tests/test_other.py",))
    (repository / "tests/test_other.py").write_text("def test():\n    assert False\n")
    monkeypatch.setattr(faults, "FAULTS", (fault,))
    with pytest.raises(ValueError, match="without any fault the tests must pass"):
        faults.main([], repository)


def test_the_table(repository, monkeypatch, capsys):
    fault = Fault("sign", "signs.py", "-x", "x", ("tests/test_signs.py",))
    monkeypatch.setattr(faults, "FAULTS", (fault,))
    assert faults.main([], repository) == {"caught": 1}
    *_, row, total = capsys.readouterr().out.splitlines()
    assert row.startswith("| sign | signs.py | caught | tests/test_signs.py::test_sign |")
    assert total == "1 faults: 1 caught, 0 escaped, 0 broken"

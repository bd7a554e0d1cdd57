"""Who may import whom (docs/architecture.md), and what the core never needs.

Every file of the package counts, and every form of import, inside functions too.
"""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

from contextdiff_jax.tasks.task_config import registered

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "contextdiff_jax"

# Folder or module of the root -> those of ours it may import, beside itself. Data flows upwards:
# each may import what stands above it.
ALLOWED = {
    "system": set(),
    "diffusion": set(),
    "networks": {"diffusion", "system"},
    "encoders": {"networks", "system"},
    "data": {"system"},
    "spaces": {"encoders", "networks", "system"},
    "conditions": {"data", "diffusion", "encoders", "networks", "spaces", "system"},
    "parallel": {"networks", "system"},  # the table of logical axis names
    "sampling": {"diffusion", "system"},
    "training": {"parallel", "spaces", "system"},
    "tasks": {
        *("conditions", "data", "diffusion", "encoders", "networks", "parallel", "sampling"),
        *("spaces", "system", "training"),
    },
    "config_upgrade": set(),
    "config": {"config_upgrade", "data", "parallel", "system", "tasks", "training"},
    "arguments": {"data", "system"},
    "command_line": {"arguments", "config", "system"},
    "entry": {"command_line", "parallel", "system", "training"},
}
# Where the parts meet, in order: each may import all above, and those before it.
TOP = ["runs", "generation", "compilation", "evaluation"]
ENTRIES = {"__main__", "main", "sample", "edit", "evaluate", "export", "prepare", "compile"}
NOT_DRAWN = {*ENTRIES, "contextdiff_jax", "arguments", "command_line", "entry"}
FORBIDDEN = {"diffusion": {"flax"}, "sampling": {"flax"}, "data": {"jax", "flax"}}


def modules():
    """Returns {dotted name: path} of every file of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """Returns every module that a file imports, in whatever form: ours by their full names."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {full if full in known else base for full in names}
    return found


KNOWN = modules()
IMPORTS = {name: imports(name, path, KNOWN) for name, path in KNOWN.items()}


def room(name):
    """The folder, or the module of the root, that a module of ours belongs to."""
    return name.split(".")[1] if "." in name else "contextdiff_jax"


def test_every_room_has_its_rule():
    rooms = {room(name) for name in KNOWN} - {"contextdiff_jax"}
    assert rooms == {*ALLOWED, *TOP, *ENTRIES}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_data_flows_one_way(name):
    own = room(name)
    below = {*ALLOWED, *(TOP[: TOP.index(own)] if own in TOP else TOP)}
    allowed = {"contextdiff_jax": {"system"}, **ALLOWED}.get(own, below) | {own}
    for imported in IMPORTS[name]:
        top = imported.partition(".")[0]
        if top == "contextdiff_jax" and imported != top:
            assert room(imported) in allowed, f"{name} imports {imported}"
        assert top not in FORBIDDEN.get(own, ()), f"{name} imports {imported}"


def test_the_picture_in_the_documentation_is_this():
    """docs/architecture.md has a line for every room: "room: the rooms it imports"."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    (block,) = re.findall(r"^```rooms\n(.*?)^```$", text, re.M | re.S)
    drawn = {line.partition(":")[0]: line.partition(":")[2].split() for line in block.splitlines()}
    found = {room(name): set() for name in KNOWN if room(name) not in NOT_DRAWN}
    for name, imported in IMPORTS.items():
        if room(name) in found:
            ours = {room(each) for each in imported & set(KNOWN)} - {room(name), "contextdiff_jax"}
            found[room(name)] |= ours
    assert drawn == {name: sorted(rooms) for name, rooms in found.items()}


def test_no_module_imports_itself_through_others():
    graph = {name: {each for each in found if each in KNOWN} for name, found in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import contextdiff_jax.data.folder", "contextdiff_jax.data.folder"),
        ("from contextdiff_jax import data", "contextdiff_jax.data"),
        ("from contextdiff_jax.data import folder", "contextdiff_jax.data.folder"),
        ("from contextdiff_jax.data.folder import METADATA", "contextdiff_jax.data.folder"),
        ("from ..data import folder as f", "contextdiff_jax.data.folder"),
        ("def f():\n    from ..data.folder import METADATA", "contextdiff_jax.data.folder"),
        ("from . import attention", "contextdiff_jax.networks.attention"),
    ],
)
def test_every_form_of_import_is_seen(tmp_path, line, expected):
    path = tmp_path / "unet.py"
    path.write_text(line)
    assert imports("contextdiff_jax.networks.unet", path, KNOWN) == {expected}


def test_nobody_outside_tasks_asks_which_task_a_run_is():
    """No comparison with a kind of task, no isinstance of a concrete one."""
    kinds = set(registered())
    concrete = {config.__name__ for config in registered().values()}
    concrete |= {"DiffusionTask", "SuperResolutionTask", "ContrastiveTask"}
    found = []
    for name, path in KNOWN.items():
        if room(name) in ("tasks", "config_upgrade"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            asks = isinstance(node, (ast.Compare, ast.MatchValue, ast.Subscript))
            words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} if asks else ()
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
                words = {ast.unparse(n).rpartition(".")[2] for n in ast.walk(node)}
            if {word for word in words if isinstance(word, str)} & (kinds | concrete):
                found.append(f"{name}: {ast.unparse(node)}")
    assert found == []


def out_of_place(name, imported):
    """Returns what a file below tests/ imports and should have as a fixture, or from elsewhere.

    A benchmark (tests/benchmarks tests those), another file of tests, another folder's conftest.
    What tests share lies in tests/fixtures, tests/oracles and files beside them.
    """
    found = set()
    for each in imported:
        first, last = each.partition(".")[0], each.rpartition(".")[2]
        if first == "benchmarks" and not name.startswith("tests.benchmarks."):
            found.add(each)
        if first == "tests" and last.startswith("test_"):
            found.add(each)
        if last == "conftest" and not name.startswith(each.removesuffix("conftest")):
            found.add(each)
    return found


TESTS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (ROOT / "tests").rglob("*.py")
}


@pytest.mark.parametrize("name", sorted(TESTS))
def test_tests_share_fixtures_and_oracles_and_no_benchmarks(name):
    assert out_of_place(name, imports(name, TESTS[name], TESTS)) == set()


@pytest.mark.parametrize(
    ("name", "imported", "wrong"),
    [
        ("tests.data.test_decode", "benchmarks.scale", True),
        ("tests.benchmarks.test_scale", "benchmarks.scale", False),
        ("tests.data.test_decode", "tests.data.test_shards", True),
        ("tests.data.test_decode", "tests.runs.conftest", True),
        ("tests.data.test_decode", "tests.data.conftest", False),
        ("tests.data.test_decode", "tests.conftest", False),
        ("tests.data.test_decode", "tests.oracles.torch_clip", False),
    ],
)
def test_what_a_test_may_not_import_is_seen(name, imported, wrong):
    assert bool(out_of_place(name, {imported})) == wrong


def test_only_checkpoints_uses_orbax():
    users = {name for name, found in IMPORTS.items() if any("orbax" in each for each in found)}
    assert users == {"contextdiff_jax.training.checkpoints"}


def needed_private(tree):
    """Lines that import what another package keeps to itself, and have no way without it.

    A way is a `try` around the import whose handler takes an ImportError.
    """
    tried = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try):
            caught = {ast.unparse(handler.type) for handler in node.handlers if handler.type}
            if caught & {"ImportError", "ModuleNotFoundError"}:
                tried |= {inner for line in node.body for inner in ast.walk(line)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        private = [name for name in names if re.search(r"\._(?!_)", f".{name}")]
        ours = all(name.startswith("contextdiff_jax.") for name in private)
        if private and not ours and node not in tried:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_nothing_private_of_others_is_needed(name):
    assert needed_private(ast.parse(KNOWN[name].read_text())) == []


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("from jax._src import distributed", True),
        ("import jax._src.core as core", True),
        ("def f():\n    from jax.lib import _jax", True),
        ("import _jax", True),
        ("try:\n    import jax._src\nexcept ValueError:\n    pass", True),
        ("try:\n    import jax._src\nexcept ImportError:\n    pass", False),
        ("from jax import core\nfrom contextdiff_jax import __version__", False),
        ("from __future__ import annotations", False),
    ],
)
def test_what_is_private_is_seen(text, needed):
    assert bool(needed_private(ast.parse(text))) == needed


def test_no_entry_point_needs_tensorflow_torch_or_beam():
    """One after the other in one process, without the flags, which exclude each other."""
    code = """
import importlib, sys
from absl import flags
for entry in ("main", "sample", "edit", "prepare"):
    flags.FLAGS.__init__()
    importlib.import_module(f"contextdiff_jax.{entry}")
    loaded = {"tensorflow", "torch", "diffusers", "apache_beam", "av"} & set(sys.modules)
    assert not loaded, (entry, loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""Who may import whom (README, "How the house is laid out"), and what the core never needs."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "contextdiff_jax"

# Modules of one small subject that import nothing of ours but each other.
LEAVES = {
    *("array_files", "atomic_write", "finite", "json_files", "limits", "pil_resizing"),
    *("notices", "printable", "scalars", "seeds", "suggestions"),
}
# Folder -> folders of ours it may import, beside itself.
ALLOWED = {
    "diffusion": set(),
    "networks": {"diffusion"},
    "encoders": {"networks"} | LEAVES,
    "data": LEAVES,
    "parallel": {"networks", "notices"},  # the table of logical axis names
    "training": {"parallel", "pictures"} | LEAVES,
    "sampling": {"diffusion", "seeds"},
    "tasks": {"diffusion", "networks", "encoders", "sampling", "training", "pil_resizing"},
    # Encoders to compare images by; the bound, of networks as functions.
    "evaluation": {
        *("data", "diffusion", "encoders", "sampling"),
        *LEAVES,
    },
}
FORBIDDEN = {"diffusion": {"flax"}, "sampling": {"flax"}, "data": {"jax", "flax"}}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_data_flows_one_way(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "contextdiff_jax" and rest:
                assert rest[0] in ALLOWED[folder] | {folder}, f"{path.name} imports {name}"
            assert top not in FORBIDDEN.get(folder, ()), f"{path.name} imports {name}"


def test_only_checkpoints_uses_orbax():
    users = {p.name for p in PACKAGE.rglob("*.py") if any("orbax" in name for name in imports(p))}
    assert users == {"checkpoints.py"}


@pytest.mark.parametrize("entry", ["main", "sample", "prepare"])
def test_no_entry_point_needs_tensorflow_torch_or_beam(entry):
    code = (
        f"import sys, contextdiff_jax.{entry}\n"
        "loaded = {'tensorflow', 'torch', 'diffusers', 'apache_beam'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

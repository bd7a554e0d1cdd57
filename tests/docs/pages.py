"""What the documentation says to type: blocks of bash, done with stand-ins for all programs."""

import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        ROOT / "launch/README.md",
        *(path for path in (ROOT / "docs").rglob("*.md") if path.name != "template.md"),
    ]
)
# Programs that the blocks may name. A word that is not among them, or a launch script, fails.
PROGRAMS = (
    *("python", "python3", "pip", "bash", "contextdiff", "mkdocs", "ruff", "mypy", "pre-commit"),
    *("gcloud", "img2dataset", "ssh-add"),
)
_STAND_IN = """#!/bin/bash
IFS=$'\\x1f'
printf '%s\\x1e' "{name}"$'\\x1f'"$*" >> {calls}
"""


def blocks(page: pathlib.Path) -> str:
    """Returns the blocks of bash of a page, one after the other: later ones use its variables."""
    found = re.findall(r"^```bash[^\n]*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return "".join(found)


def calls(script: str, folder: pathlib.Path) -> list[list[str]]:
    """Returns the commands that bash would start, as it splits and expands them.

    Raises AssertionError where the script is no bash or names a program that is not known.
    """
    record = folder / "calls"
    names = [f"bin/{name}" for name in PROGRAMS]
    names += [f"launch/{path.name}" for path in (ROOT / "launch").glob("*.sh")]
    for name in names:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(_STAND_IN.format(name=name.removeprefix("bin/"), calls=record))
        file.chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    done = subprocess.run(
        ["/bin/bash", "-eu"],
        input=script,
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": str(folder / "bin"), "HOME": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    lines = record.read_text().split("\x1e")[:-1] if record.exists() else []
    return [line.split("\x1f") for line in lines]


def spans(page: pathlib.Path) -> list[str]:
    """Returns the page's inline code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)

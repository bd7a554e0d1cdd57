"""One command for all: contextdiff train --config=configs/quickstart.py --workdir=runs/quickstart

Installed as `contextdiff`; without installing it is `python -m contextdiff_jax`. Each command is a
module that runs by itself too: `python -m contextdiff_jax.main` trains.
"""

import runpy
import sys

from contextdiff_jax import __version__
from contextdiff_jax.system import notices
from contextdiff_jax.system.suggestions import nearest

COMMANDS = {  # name: (module, what it does)
    "train": ("main", "train a pipeline of runs and draw its samples; resumes"),
    "sample": ("sample", "draw pictures for prompts from an export"),
    "edit": ("edit", "edit a clip by a prompt, with Stable Diffusion"),
    "evaluate": ("evaluate", "measure an export or training runs"),
    "export": ("export", "turn training checkpoints into one folder to sample from"),
    "prepare": ("prepare", "encode all captions once, before training"),
    "compile": ("compile", "say what a program needs on a chip that you do not have"),
}
EXIT_REFUSED = 2  # as entry.py's, which takes seconds to import


def main() -> None:
    """Runs the command that the first argument names, by the path of `python -m`."""
    notices.end_at_once()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("--help", "-h", "help"):
        print(_usage())
    elif name == "--version":
        print(f"contextdiff_jax {__version__}")
    elif name in COMMANDS:
        module = f"contextdiff_jax.{COMMANDS[name][0]}"
        del sys.argv[1]
        # alter_sys: absl and new processes ask what the program is.
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        print(f"contextdiff_jax: {_refusal(name)}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)


def _usage() -> str:
    lines = [f"  contextdiff {name:<9} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["Contextualized diffusion in JAX.", "", *lines, "", "Each has --help."])


def _refusal(name: str) -> str:
    known = ", ".join(COMMANDS)
    if not name:
        return f"a command is missing: must be one of {known}; --help says what they do"
    return f"{name!r}: must be one of {known}{nearest(name, COMMANDS)}"


if __name__ == "__main__":
    main()

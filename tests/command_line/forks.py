"""Runs entry points in children of one process that has imported what they import, JAX above all.

Reads lines of JSON, [module, argument, ...], and answers each with [exit code, stdout, stderr] of
`python -m contextdiff_jax.MODULE ARGUMENTS`; a name with a dot is that of a module elsewhere. A
child has all its state to itself, flags included, and ends by the very path that a user's process
does.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import tempfile

LONGEST = 1800  # seconds until a child that does not end is killed


def import_all() -> None:
    """Imports the package but for the entry points, whose flags exclude each other."""
    for name in ("runs", "generation", "evaluation", "compilation", "data", "parallel"):
        package = importlib.import_module(f"contextdiff_jax.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name != "contextdiff_jax.runs.prepare_beam":
                importlib.import_module(module.name)
    importlib.import_module("contextdiff_jax.entry")


def run(module: str, arguments: list[str]) -> list:
    """Returns [exit code, stdout, stderr]; the code is negative after a signal, as subprocess's."""
    reader, writer = os.pipe()
    with tempfile.TemporaryFile() as out, open(reader, "rb") as err:
        child = os.fork()
        if child == 0:
            _become(module, arguments, out.fileno(), writer)
        os.close(writer)
        told = err.read()  # to the end of parallel/abort_reasons.py too, which outlives the child
        _, status = os.waitpid(child, 0)
        out.seek(0)
        texts = [text.decode(errors="replace") for text in (out.read(), told)]
        return [os.waitstatus_to_exitcode(status), *texts]


def _become(module: str, arguments: list[str], out: int, err: int) -> None:
    code = 70
    try:
        signal.alarm(LONGEST)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(err)
        sys.argv = [f"contextdiff_jax/{module}.py", *arguments]
        name = module if "." in module else f"contextdiff_jax.{module}"
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = 1
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    import_all()
    for line in sys.stdin:
        name, *words = json.loads(line)
        print(json.dumps(run(name, words)), flush=True)

"""Faults made on purpose, one at a time, in a copy of the package: do the tests catch them?

  python -m benchmarks.faults
  python -m benchmarks.faults --only=guidance --only=skips

Each of FAULTS replaces a piece of one file and names the tests that are to fail for it, of the fast
half. A fault is

  caught: one of those tests failed;
  escaped: they passed;
  broken: no test came to a verdict, as an import failed or a file of tests is gone.

Exit code 1 unless all are caught. Before the first fault the same tests run without any, and must
pass.
"""

import argparse
import collections
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("contextdiff_jax", "configs", "benchmarks", "tests", "pyproject.toml")
SOUND, FAILED = 0, 1  # exit codes of pytest; any other is no verdict


@dataclasses.dataclass(frozen=True)
class Fault:
    """file: below contextdiff_jax/, where `before`, once there, becomes `after`."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def apply(self, root: pathlib.Path) -> None:
        """Raises ValueError unless `before` is there exactly once."""
        path = root / "contextdiff_jax" / self.file
        text = path.read_text()
        if text.count(self.before) != 1:
            raise ValueError(
                f"fault {self.name}: {self.before!r} is {text.count(self.before)} times in "
                f"{self.file}, must be there once"
            )
        path.write_text(text.replace(self.before, self.after))


FAULTS = (
    Fault(
        "posterior",  # eq. 3 without the bias of where the step ends
        "diffusion/marginals.py",
        "(x_t - bias_t) + bias_s",
        "(x_t - bias_t)",
        ("tests/diffusion/test_marginals.py",),
    ),
    Fault(
        "step",  # DDIM's noise points the wrong way
        "diffusion/steps.py",
        "bias_s + expand(direction, x_t) * e",
        "bias_s - expand(direction, x_t) * e",
        ("tests/diffusion/test_steps.py",),
    ),
    Fault(
        "guidance",  # towards the estimate without the prompt
        "sampling/guidance.py",
        "kept, dropped = pairs[:, 0], pairs[:, 1]",
        "kept, dropped = pairs[:, 1], pairs[:, 0]",
        ("tests/sampling/test_guidance.py",),
    ),
    Fault(
        "modulation",  # the time scales the norm and no longer shifts it
        "networks/layers.py",
        " + shift.astype(jnp.float32)",
        "",
        ("tests/networks/test_layers.py",),
    ),
    Fault(
        "skips",  # each block up takes the other one's skip
        "networks/unet.py",
        "taken = [skips.pop() for _ in range(count)]",
        "taken = [skips.pop() for _ in range(count)][::-1]",
        ("tests/networks/test_unet_against_diffusers.py",),
    ),
    Fault(
        "mask",  # padding is attended to
        "networks/attention.py",
        'mask = None if self.keys == "self" else jnp.concatenate([m for *_, m in sources], 1)',
        "mask = None",
        ("tests/networks/test_attention.py",),
    ),
    Fault(
        "average",  # the average of the weights follows them instead of lagging behind
        "training/step.py",
        "old + (1.0 - decay) * (new - old)",
        "old + decay * (new - old)",
        ("tests/training/test_step.py",),
    ),
    Fault(
        "resumption",  # a resumed run reads the data from their beginning
        "training/loop.py",
        "return restored.state, restored.position",
        "return restored.state, 0",
        ("tests/training/test_loop.py",),
    ),
    Fault(
        "damage",  # a changed file of a checkpoint is taken for sound
        "training/checksums.py",
        "if found != value:",
        "if False:",
        ("tests/training/test_checksums.py",),
    ),
    Fault(
        "frechet",  # the root's trace is taken once
        "evaluation/frechet.py",
        "traces - 2.0 * roots",
        "traces - roots",
        ("tests/evaluation/test_frechet.py",),
    ),
)


def copied(root: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Copies what the tests need; returns the target."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(
                root / name, target / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (root / name).exists():
            shutil.copy(root / name, target / name)
    return target


def run_tests(root: pathlib.Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs tests of the fast half in `root` until one fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow"]
    command += ["-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def judge(fault: Fault, root: pathlib.Path) -> tuple[str, str]:
    """Returns caught, escaped or broken, and the line of pytest that shows it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(root, pathlib.Path(folder))
        fault.apply(copy)
        done = run_tests(copy, fault.tests)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    failed = next((line for line in lines if line.startswith("FAILED ")), None)
    if done.returncode == FAILED and failed:
        return "caught", failed.removeprefix("FAILED ").partition(" - ")[0]
    return ("escaped" if done.returncode == SOUND else "broken"), lines[-1]


def chosen(names: Sequence[str] | None) -> list[Fault]:
    """Returns the faults of these names, or all. Raises ValueError for a name that is none."""
    known = {fault.name: fault for fault in FAULTS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"--only={name}: must be one of {', '.join(known)}")
    return [known[name] for name in names or known]


def main(argv: Sequence[str] | None = None, root: pathlib.Path = ROOT) -> collections.Counter:
    """Prints a line for each fault; returns how many were caught, escaped, broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", help="a fault's name; may be given again")
    faults = chosen(parser.parse_args(argv).only)
    with tempfile.TemporaryDirectory() as folder:
        tests = sorted({test for fault in faults for test in fault.tests})
        sound = run_tests(copied(root, pathlib.Path(folder)), tests)
    if sound.returncode != SOUND:
        raise ValueError(f"without any fault the tests must pass:\n{sound.stdout[-2000:]}")
    counts: collections.Counter = collections.Counter()
    print("| fault | file | result | by | seconds |\n| --- | --- | --- | --- | --- |")
    for fault in faults:
        began = time.monotonic()
        result, line = judge(fault, root)
        counts[result] += 1
        seconds = time.monotonic() - began
        print(f"| {fault.name} | {fault.file} | {result} | {line} | {seconds:.0f} |", flush=True)
    print(f"{len(faults)} faults: {', '.join(f'{counts[r]} {r}' for r in RESULTS)}")
    return counts


RESULTS = ("caught", "escaped", "broken")


if __name__ == "__main__":
    try:
        found = main()
    except ValueError as error:
        sys.exit(f"benchmarks.faults: {error}")
    sys.exit(0 if set(found) == {"caught"} else 1)

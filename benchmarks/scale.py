"""What the TPU compiler says of the paper's two stages on several slices; writes docs/scale.md.

  pip install libtpu
  python -m benchmarks.scale --redo                # all of it again
  python -m benchmarks.scale                       # compiles what docs/scale/*.json lacks
  python -m benchmarks.scale --redo --only=base-v5e-256

Needs libtpu, no TPU; minutes a case on two cores. Each case is one
`python -m contextdiff_jax.compile`, its figures docs/scale/NAME.json.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIG = "--config=configs/laion.py"
TEMPLATE = ROOT / "docs" / "scale" / "template.md"


@dataclasses.dataclass(frozen=True)
class Case:
    """One compilation: flags of contextdiff_jax.compile beside the config."""

    name: str
    flags: tuple[str, ...]

    def command(self, output: str) -> list[str]:
        """Returns the arguments after `python`."""
        return ["-m", "contextdiff_jax.compile", CONFIG, *self.flags, f"--output={output}"]


def _sampling(run: str) -> Case:
    flags = (f"--run={run}", "--what=sample", "--topology=v5e:2x4")
    return Case(f"{run}-sampling-v5e-8", flags)


def _training(run: str, topology: str, chips: int, batch_size: int, *more: str) -> Case:
    family = topology.partition(":")[0]
    flags = (
        f"--run={run}",
        f"--topology={topology}",
        f"--batch_size={batch_size}",
        # Tokens come with the batch: nothing is read here.
        f"--config.runs.{run}.data.embeddings=embeddings",
        *more,
    )
    return Case(f"{run}-{family}-{chips}", flags)


CASES = (
    _training("base", "v5e:16x16", 256, 2048),
    _training("sr", "v5e:16x16", 256, 1024),
    _training("base", "v5p:2x4x4", 32, 2048),
    _training("sr", "v5p:2x4x4", 32, 1024),
    _training("base", "v6e:8x8", 64, 2048),
    # Where memory is slow beside arithmetic, recomputing moves less than keeping.
    _training("sr", "v6e:8x8", 64, 1024, "--config.runs.sr.task.efficient_unet.remat_levels=0"),
    # Two slices, joined by the data center's network: twice the batch.
    _training("base", "v5e:16x16", 512, 4096, "--slices=2"),
    _training("sr", "v5e:16x16", 512, 2048, "--slices=2"),
    _sampling("base"),
    _sampling("sr"),
)

# What the project set out to reach in training on a v5e-256, in bfloat16.
AIMS = {
    "at most 14 GiB per chip": lambda r: (r["peak_bytes"] <= 14 * 2**30, _gib(r["peak_bytes"])),
    "compiled FLOPs at most 1.35 times the model's": lambda r: (
        r["flops_ratio"] <= 1.35,
        f"{r['flops_ratio']:.2f}",
    ),
    "compiled in less than 8 minutes": lambda r: (r["compile_s"] < 480, f"{r['compile_s']:.0f} s"),
    "MFU at most (roofline) at least 60 %": lambda r: (
        r["mfu_bound"] >= 0.6,
        f"{r['mfu_bound']:.0%}",
    ),
    "no all-to-all": lambda r: ("all-to-all" not in r["collectives"], "none sent"),
}
_CORES = {"v4": 2, "v5p": 2}  # of a chip; these families' slices are named by cores


def slice_name(report: dict[str, Any]) -> str:
    """Returns the slice as Google Cloud names it (v5p-64 has 32 chips), after their number."""
    slices = report["slices"]
    family = report["topology"].rpartition(" ")[2].partition(":")[0]
    name = f"{family}-{report['chips'] // slices * _CORES.get(family, 1)}"
    return name if slices == 1 else f"{slices} x {name}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


COLUMNS = {
    "case": lambda r: (
        f"{r['run']}, {slice_name(r)}" + (", sampling" if r["what"] == "sample" else "")
    ),
    "topology": lambda r: r["topology"],
    "mesh": lambda r: " x ".join(str(size) for size in r["mesh"].values()),
    "batch": lambda r: f"{r['batch_size']:,}",
    "GiB per chip (of HBM)": lambda r: (
        f"{r['peak_bytes'] / 2**30:.2f} ({r['hbm_bytes'] / 2**30:.0f})"
        + ("" if r["fits"] else ", does not fit")
    ),
    "compiled / model FLOPs": lambda r: f"{r['flops_ratio']:.2f}",
    "compute s": lambda r: f"{r['compute_s']:.3f}",
    "memory s": lambda r: f"{r['memory_s']:.3f}",
    "network s": lambda r: f"{r['network_s']:.3f}",
    "between slices s": lambda r: (
        f"{r['between_slices_s']:.3f}" if r["slices"] > 1 and r["between_slices_s"] else ""
    ),
    "MFU at most": lambda r: f"{r['mfu_bound']:.0%}",
    "chip-hours per 10^6 steps, at least": lambda r: (
        f"{1e6 * r['step_s'] * r['chips'] / 3600:,.0f}" if r["what"] == "train" else ""
    ),
    "compile s": lambda r: f"{r['compile_s']:.0f}",
}


def table(reports: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table of the figures."""
    if not reports:
        return "No case is compiled yet: the command below does it."
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[show(report) for show in COLUMNS.values()] for report in reports]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def aims(reports: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table of the aims, met or missed, for the cases on a v5e-256."""
    on = [r for r in reports if slice_name(r) == "v5e-256" and r["what"] == "train"]
    rows = [["aim", *(report["run"] for report in on)], ["---"] * (len(on) + 1)]
    for aim, judge in AIMS.items():
        verdicts = [judge(report) for report in on]
        rows.append([aim, *(f"{'met' if met else '**missed**'}: {x}" for met, x in verdicts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def collectives(reports: Sequence[dict[str, Any]]) -> str:
    """Returns the Markdown table of what is sent, by kind."""
    if not reports:
        return ""
    kinds = sorted({kind for report in reports for kind in report["collectives"]})
    rows = [["case", *kinds], ["---"] * (len(kinds) + 1)]
    for report in reports:
        cells = (report["collectives"].get(kind) for kind in kinds)
        shown = [f"{c[0]:,}, {c[1] / 1e9:.2f} GB" if c else "none" for c in cells]
        rows.append([COLUMNS["case"](report), *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def commands() -> str:
    """Returns the compile commands, one a line, as a user would type them."""
    return "\n".join(shlex.join(["python", *case.command(f"{case.name}.json")]) for case in CASES)


def compile_case(case: Case, folder: pathlib.Path) -> None:
    """Compiles one case into folder/NAME.json; raises RuntimeError, all left, without figures."""
    path = folder / f"{case.name}.json"
    new = path.with_suffix(".new")
    print(f"{case.name}: compiling", flush=True)
    done = subprocess.run([sys.executable, *case.command(str(new))], cwd=ROOT)
    # 1: it does not fit, which is a result; without figures only where the compiler gave up.
    report = json.loads(new.read_text()) if new.exists() else {}
    if done.returncode not in (0, 1) or "peak_bytes" not in report:
        new.unlink(missing_ok=True)
        why = report.get("compiler", f"compile ended with exit code {done.returncode}")
        raise RuntimeError(f"{case.name}: {why}")
    new.replace(path)


def write(folder: pathlib.Path, template: pathlib.Path, output: pathlib.Path) -> None:
    """Fills the template with the tables of what is there."""
    found = [folder / f"{case.name}.json" for case in CASES]
    reports = [json.loads(path.read_text()) for path in found if path.exists()]
    missing = [path.stem for path in found if not path.exists()]
    versions = sorted({f"{k} {v}" for report in reports for k, v in report["versions"].items()})
    text = template.read_text()
    for mark, value in {
        "{table}": table(reports) + (f"\n\nMissing: {', '.join(missing)}." if missing else ""),
        "{aims}": aims(reports),
        "{collectives}": collectives(reports),
        "{versions}": ", ".join(versions) or "jax and libtpu as named in the figures",
        "{commands}": commands(),
    }.items():
        text = text.replace(mark, value)
    output.write_text(text)
    print(f"{output}: {len(reports)} of {len(CASES)} cases")


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles what is missing and writes the document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    names = [case.name for case in CASES]
    add("--only", choices=names, help="compile this case alone")
    add("--redo", action="store_true", help="compile again what has its figures")
    add("--table", action="store_true", help="compile nothing, write the document")
    args = parser.parse_args(argv)
    folder = ROOT / "docs" / "scale"
    for case in CASES:
        wanted = not args.table and args.only in (None, case.name)
        if wanted and (args.redo or not (folder / f"{case.name}.json").exists()):
            compile_case(case, folder)
    write(folder, TEMPLATE, ROOT / "docs" / "scale.md")


if __name__ == "__main__":
    main()

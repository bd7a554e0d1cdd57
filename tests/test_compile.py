"""The compile command, as a user runs it: on virtual CPUs, and for a slice that is not there."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
CLIP = ("--config=configs/laion.py:tiny", "--run=clip")
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


def compile_command(*flags):
    command = [sys.executable, "-m", "contextdiff_jax.compile", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_virtual_devices_give_every_figure(tmp_path):
    output = tmp_path / "clip.json"
    done = compile_command(*CLIP, "--topology=cpu:8", "--config.mesh.fsdp=4", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["chips"] == 8
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    # Parameters, two moments and EMA in float32, some of them split over fsdp.
    assert found["argument_bytes"] > 4 * 4 * found["parameters"] / 8
    assert 0.9 < found["flops_ratio"] < 2
    assert found["collectives"]["all-reduce"][0] > 0
    assert found["fits"] is None  # nothing is published of this CPU
    assert found["effort"] is None
    for words in ("memory per chip", "operations", "all-reduce", "compiled in"):
        assert words in done.stdout


@needs_libtpu
def test_little_effort_changes_the_code_and_not_the_operations(tmp_path):
    found = {}
    for effort in ("-1", "0"):
        output = tmp_path / f"{effort}.json"
        flags = ("--topology=v5e:2x2", f"--effort={effort}", f"--output={output}")
        done = compile_command(*CLIP, *flags)
        assert done.returncode == 0, done.stderr
        found[effort] = json.loads(output.read_text())
        assert found[effort]["effort"] == float(effort)
    low, full = found["-1"], found["0"]
    assert low["code_bytes"] < full["code_bytes"]
    for key in ("compiled_flops", "argument_bytes"):
        assert low[key] == full[key], key
    assert low["network_s"] == pytest.approx(full["network_s"], rel=0.01)


@needs_libtpu
def test_a_program_too_large_says_what_to_turn():
    # The similarity of 300,000 texts and images, split over four chips, is 84 GiB a chip.
    flags = ("--topology=v5e:2x2", "--batch_size=300000")
    done = compile_command(*CLIP, *flags)
    assert done.returncode == 1, done.stderr
    assert "does not fit" in done.stderr
    assert "a smaller batch_size" in done.stderr
    assert "params" in done.stdout  # bytes by group come before the compiler's verdict


@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--topology=v5e:3x5",), "topology 'v5e:3x5' is not known to libtpu, e.g. v5e:16x16"),
        (("--topology=v5e:2x2", "--batch_size=6"), "batch_size = 6: must be divisible by 4"),
        (
            ("--topology=v5e:2x2", "--config.mesh.fsdp=3"),
            "does not fill the 4 devices: mesh.fsdp = 3: 1 or 2 or 4 would fit",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_sentence(flags, sentence):
    done = compile_command(*CLIP, *flags)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]

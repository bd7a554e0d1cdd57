"""The compile command, as a user runs it: on virtual CPUs, and for a slice that is not there."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from contextdiff_jax.parallel import absent_gpus

ROOT = pathlib.Path(__file__).parent.parent
CLIP = ("--config=configs/laion.py:tiny", "--run=clip")
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


def compile_command(*flags):
    command = [sys.executable, "-m", "contextdiff_jax.compile", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@needs_libtpu
def test_a_program_too_large_says_what_takes_memory_and_what_to_turn(tmp_path):
    # 40 million tokens, 32 wide: 4.77 GiB in each of parameters, two moments and EMA; a v5e has 16.
    output = tmp_path / "large.json"
    large = ("--topology=v5e:2x2", "--config.runs.clip.task.tokenizer.vocab_size=40000000")
    done = compile_command(*CLIP, *large, f"--output={output}")
    assert done.returncode == 1, done.stderr
    found = json.loads(output.read_text())
    assert found["fits"] is False
    assert found["argument_bytes"] == pytest.approx(16 * found["parameters"], rel=0.01)
    assert found["peak_bytes"] > found["argument_bytes"] + found["temporary_bytes"]
    assert "DOES NOT FIT: 14.00 GiB usable of 16.00 GiB HBM" in done.stdout
    told = done.stderr[done.stderr.index("contextdiff_jax: does not fit") :]
    assert "arguments take 19.07 GiB of 28.6" in told
    assert "4.77 GiB f32[40000000,32] jit(step)" in told
    assert "A larger mesh.fsdp (now 1, at most 4)" in told
    assert "remat" not in told  # CLIP has no such setting


@pytest.mark.slow
@needs_libtpu
def test_where_the_compiler_gives_up_its_own_words_are_kept(tmp_path):
    # One array of 16.7 GiB: the compiler places nothing and has no figures.
    output = tmp_path / "huge.json"
    huge = ("--topology=v5e:2x2", "--config.runs.clip.task.tokenizer.vocab_size=140000000")
    done = compile_command(*CLIP, *huge, f"--output={output}")
    assert done.returncode == 1, done.stderr
    found = json.loads(output.read_text())
    assert found["fits"] is False
    assert found["parameters"] > 32 * 140_000_000
    for words in ("RESOURCE_EXHAUSTED", "f32[140000000,32]"):
        assert words in found["compiler"]
        assert words in done.stderr
    assert "A larger mesh.fsdp (now 1, at most 4)" in done.stderr
    assert "params" in done.stdout  # bytes by group come before the compiler's verdict


SMALL = ("--config=configs/laion.py:tiny", "--config.use_adapter=False", "--batch_size=4")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("run", "what"), [("base", "train"), ("base", "sample"), ("sr", "sample")])
def test_stages_compile_for_a_slice_in_both_modes(run, what, tmp_path):
    output = tmp_path / "stage.json"
    flags = (f"--run={run}", f"--what={what}", "--topology=v5e:2x2", "--config.mesh.fsdp=2")
    done = compile_command(*SMALL, *flags, f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    check_sanity(found)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    # Parameters in float32, in training two moments and EMA, in part split over fsdp; small arrays
    # are padded to tiles, and the text encoder comes on top.
    copies = 4 if what == "train" else 1
    whole = 4 * copies * found["parameters"]
    assert whole / 2 < found["argument_bytes"] < 3 * whole
    assert found["collectives"]["all-gather"][0] > 0  # fsdp gathers parameters
    if what == "train":
        assert found["collectives"]["all-reduce"][0] > 0  # of gradients
        assert found["collectives"]["all-reduce"][1] > 4 * found["parameters"] / 2


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1"])
def test_other_families_compile(topology, tmp_path):
    output = tmp_path / "clip.json"
    done = compile_command(*CLIP, f"--topology={topology}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["chips"] == 4
    assert "between slices" not in done.stdout
    check_sanity(found)


@pytest.mark.slow
@needs_libtpu
def test_what_several_slices_send_each_other_is_in_the_roofline(tmp_path):
    output = tmp_path / "clip.json"
    flags = ("--topology=v6e:2x2", "--slices=2", "--config.mesh.fsdp=4", f"--output={output}")
    done = compile_command(*CLIP, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert (found["topology"], found["slices"], found["chips"]) == ("2 x v6e:2x2", 2, 8)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    count, sent = found["sent_between_slices"]
    # Gradients of what fsdp splits over four chips cross once, in float32 at most.
    assert count > 0 and found["parameters"] / 4 < sent <= 4 * found["parameters"]
    assert found["between_slices_s"] == pytest.approx(sent / 12.5e9)
    assert f"between slices   {count:,} times" in done.stdout
    check_sanity(found)


def check_sanity(found, usable=0.875):
    """Figures of one report agree with each other. usable: share of HBM."""
    assert found["model_flops"] > 0
    assert 0.5 < found["flops_ratio"] < 2
    parts = found["argument_bytes"] + found["temporary_bytes"] + found["code_bytes"]
    assert 0 < found["argument_bytes"] < parts <= found["peak_bytes"]
    assert found["peak_bytes"] < 1.5 * parts  # the rest is results that reuse no argument
    assert found["usable_bytes"] == usable * found["hbm_bytes"]
    assert found["fits"] is (found["peak_bytes"] <= usable * found["hbm_bytes"]) is True
    bounds = ("compute", "memory", "network", "between_slices")
    assert found["step_s"] == max(found[f"{key}_s"] or 0 for key in bounds)
    assert "tpu_custom_call" not in found["custom_calls"]  # attention kernels are counted
    assert 0 < found["mfu_bound"] <= 1
    assert found["largest"][0][0] <= found["peak_bytes"]


@needs_libtpu
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--topology=v5e:3x5",), "topology 'v5e:3x5' is not known to libtpu, e.g. v5e:16x16"),
        (("--topology=v5e:3x5",), "on offer: v5e:2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16. libtpu"),
        (("--topology=v5e:2x2", "--batch_size=6"), "batch_size = 6: must be divisible by 4"),
        (
            ("--topology=v5e:2x4", "--run=base", "--what=sample", "--batch_size=12"),
            "batch_size = 12: must be divisible by 8 devices (data x fsdp)",
        ),
        (
            ("--topology=v5e:2x2", "--config.mesh.fsdp=3"),
            "does not fill the 4 devices: ",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_a_sentence(flags, sentence, forks):
    done = forks("compile", *CLIP, *flags)
    assert done.returncode == 2
    assert sentence in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--what=sample",), "--what=sample --run=clip: must be one of base, sr, the runs that"),
        (("--slices=0",), "--slices=0: must be at least 1"),
        (("--batch_size=-4",), "--batch_size=-4: must be at least 1 and below 2^31, or 0 for"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_a_sentence(flags, sentence, forks):
    done = forks("compile", *CLIP, "--topology=cpu:4", *flags)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not absent_gpus.installed(), reason="jax[cuda12] is not installed")
def test_a_gpu_that_is_not_there_is_compiled_for(tmp_path):
    """With its libraries' products counted, and on several GPUs collectives."""
    output = tmp_path / "gpu.json"
    done = compile_command(*CLIP, "--topology=h100:2", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    check_sanity(found, usable=0.75)
    assert found["effort"] is None and found["mesh"]["data"] == 2
    assert found["collectives"]["all-reduce"][1] > 0


EDIT = "--config=configs/video_editing.py:fatezero"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((EDIT, "--run=base"), "--run=base: not with the config of an edit, which has no runs"),
        ((EDIT, "--batch_size=2"), "--batch_size=2: not with the config of an edit"),
        ((EDIT, "--config.num_steps=0"), "config.num_steps = 0: must be 1 to 1000"),
        ((EDIT, "--config.clip.count=6"), "config.clip.count = 6: must be a multiple of 4"),
        ((*CLIP, "--what=invert"), "--what=invert: only with the config of an edit"),
        ((*CLIP, "--model=tiny"), "--model=tiny: only with the config of an edit"),
    ],
)
def test_flags_of_runs_and_of_edits_are_not_mixed(flags, sentence, forks):
    done = forks("compile", *flags, "--topology=cpu:4")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1]


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("what", ["train", "invert", "sample"])
def test_an_edit_compiles_for_a_slice(what, tmp_path):
    output = tmp_path / "edit.json"
    config = ("--config=configs/video_editing.py:fatezero_tuned", "--model=tiny")
    sizes = ("--config.height=64", "--config.width=64", "--config.num_steps=3")
    flags = (f"--what={what}", "--topology=v5e:2x2", f"--output={output}")
    done = compile_command(*config, *sizes, *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["fits"] is True and found["chips"] == 4
    assert found["batch_size"] == 8 and found["mesh"]["data"] == 4
    assert found["collectives"]  # keys and norms of other frames


def test_a_wrong_flag_is_refused_with_the_code_of_refusals(forks):
    done = forks("compile", *CLIP, "--topology=cpu:4", "--effort=3")
    assert done.returncode == 2
    assert "effort" in done.stderr


def test_a_failure_has_a_code_of_its_own():
    program = """
import sys
from contextdiff_jax import compile as command

def fail(*args):
    raise KeyError("nobody expected this")

command.compile_report = fail
command.run()
"""
    flags = (*CLIP, "--topology=cpu:4")
    done = subprocess.run(
        [sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 70, done.stderr
    assert "KeyError: 'nobody expected this'" in done.stderr

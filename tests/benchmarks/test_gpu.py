"""What runs on a GPU, at toy size on CPU, so that on the day only the numbers are missing."""

import json
import os
import pathlib
import subprocess
import tarfile

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from benchmarks import (  # noqa: E402
    adapter_vs_plain,
    gpu_latent,
    gpu_unet,
    latent_vs_diffusers,
    paired_runs,
    torch_unet,
    unet_vs_diffusers,
)
from benchmarks.configuration import load_config  # noqa: E402
from benchmarks.jax_unet import JaxUNet  # noqa: E402
from benchmarks.paired_variants import VARIANTS  # noqa: E402
from contextdiff_jax.runs.validation import validate  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent.parent
TOY = [
    "--device=cpu",
    "--torch_compile=eager",  # TorchDynamo's tracing, without a compiler for what it finds
    "--resolution=8",
    "--batch_size=2",
    "--sample_batch_size=1",
    "--width=16",
    "--multipliers=1,2",
    "--attention_levels=1",
    "--num_blocks=1",
    "--head_dim=8",
    "--groups=8",
    "--text_dim=32",
    "--text_tokens=3",
    "--num_steps=2",
    "--turns=1",
    "--seconds=0",
    "--peak_tflops=0.1",
]
TOY_LATENT = [flag for flag in TOY if not flag.startswith("--head_dim")] + ["--heads=2"]


@pytest.mark.slow
def test_size_and_peer():
    work = unet_vs_diffusers.workload(unet_vs_diffusers.parse(gpu_unet.SETTINGS))
    ours = JaxUNet(work).parameter_count()
    assert 300e6 < ours < 500e6
    width = torch_unet.matching_width(work, "deepfloyd_if", ours)
    assert torch_unet.count(work, "deepfloyd_if", width) == pytest.approx(ours, rel=0.05)
    latent = latent_vs_diffusers.workload(latent_vs_diffusers.parse(gpu_latent.SETTINGS))
    assert JaxUNet(latent).parameter_count() == 859_520_964


def test_without_a_gpu_it_says_so():
    with pytest.raises(ValueError, match="jax runs on cpu, --device=gpu: set JAX_PLATFORMS=cuda"):
        gpu_unet.main(["--what=training"])
    with pytest.raises(
        ValueError, match="--attention = 'cudnn': must be 'auto' or 'xla' on this cpu"
    ):
        gpu_unet.main([*TOY, "--attention=cudnn"])


@pytest.mark.slow
def test_ratio_and_mfu_of_training(tmp_path, capsys):
    path = tmp_path / "result.json"
    gpu_unet.main([*TOY, "--what=training", f"--json={path}"])
    result = json.loads(path.read_text())
    assert result["settings"]["dtype"] == "bfloat16"
    assert result["training"]["ratio_of_medians"] > 0
    for side in ("ours", "diffusers"):
        # Images per second, three calls for each, operations per call, of the peak.
        (rate,) = result["training"]["rates"][side]
        share = rate * 3 * result["forward_flops"][side] / 1e11
        assert result["training"]["mfu"][side] == pytest.approx(share)
    printed = capsys.readouterr().out
    assert printed.count("MFU of 0.1 TFLOP/s") == printed.count("ours / diffusers") == 1


@pytest.mark.slow
def test_latents_train_and_are_drawn(tmp_path):
    """With TorchDynamo, in bfloat16, as on the device."""
    for what, calls in (("training", 3), ("sampling", 4)):
        path = tmp_path / f"{what}.json"
        gpu_latent.main([*TOY_LATENT, f"--what={what}", f"--json={path}"])
        result = json.loads(path.read_text())
        assert result["settings"]["torch_compile"] == "eager"
        for side in ("ours", "diffusers"):
            (rate,) = result[what]["rates"][side]
            share = rate * calls * result["forward_flops"][side] / 1e11
            assert result[what]["mfu"][side] == pytest.approx(share)


def gpu_sh(*parts, **environment):
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", *parts],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def check_variants(flow):
    """Every variant can be trained, at its full rate for most of its steps."""
    config, _, base = paired_runs.base_only(load_config(flow.config, flow.changes), 0, flow)
    assert config.runs[base].optimizer.warmup_steps == 500 < config.runs[base].steps
    for variant in flow.variants:
        validate(VARIANTS[variant](config, base))


def test_parts_start_what_exists_and_keep_its_results(tmp_path):
    """With a Python that only notes how it was called and writes what the parts would."""
    python, called, out = (tmp_path / name for name in ("venv/bin/python", "called", "out"))
    python.parent.mkdir(parents=True)
    python.write_text(
        f"""#!/bin/sh
        printf '%s\\n' "$*" >>{called}
        mkdir -p {out}/emoji/work {out}/emoji/with {out}/flow/0/flow_none/work \
            {out}/flow/reference
        echo '{{}}' >{out}/emoji/summary.json
        echo measured
        """
    )
    python.chmod(0o755)
    done = gpu_sh(
        "training",
        "sampling",
        "emoji",
        "attention",
        "latent_training",
        "latent_sampling",
        "flow",
        OUT=str(out),
        VENV=str(tmp_path / "venv"),
        DATA="shards",
        CIFAR10="cifar10",
        FLOW_FLAGS=f"--features={__file__}",
        UNET_FLAGS="--turns=3 --peer=stable_diffusion",
        LATENT_FLAGS="--batch_size=2",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    modules, commands = zip(
        *(line.split()[1:2] + [line.split()[2:]] for line in called.read_text().splitlines()),
        strict=True,
    )
    last = ("benchmarks.adapter_vs_plain", "benchmarks.fused_attention")
    latent = ("benchmarks.gpu_latent",) * 2
    assert modules == ("benchmarks.gpu_unet",) * 2 + last + latent + ("benchmarks.paired_runs",)
    flow = paired_runs.parse(commands[6])
    assert (flow.config, flow.data_path, flow.output) == ("classes:folder", "cifar10", out / "flow")
    assert flow.features == __file__
    assert {"flow_none_logit_normal", "vp_none_logit_normal", "vp_paper"} < set(flow.variants)
    check_variants(flow)
    with tarfile.open(out / "flow.tar.gz") as archive:
        assert set(archive.getnames()) == {"flow", "flow/0", "flow/0/flow_none"}
    for part, command in zip(("latent_training", "latent_sampling"), commands[4:6], strict=True):
        args = latent_vs_diffusers.parse([*gpu_latent.SETTINGS, *command])
        found = (args.what, args.json, args.turns, args.batch_size)
        assert found == (part.removeprefix("latent_"), out / f"{part}.json", 3, 2)
    assert commands[3] == [f"--json={out}/attention.json"]
    for part, command in zip(("training", "sampling"), commands, strict=False):
        args = unet_vs_diffusers.parse([*gpu_unet.SETTINGS, *command])
        assert (args.what, args.json, args.turns) == (part, out / f"{part}.json", 3)
        assert (out / f"{part}.log").read_text() == "measured\n"
    args = adapter_vs_plain.parse(commands[2])
    assert (args.config, args.data_path, args.output) == ("emoji", "shards", out / "emoji")
    assert (out / "emoji.json").exists()
    with tarfile.open(out / "emoji.tar.gz") as archive:
        assert set(archive.getnames()) == {"emoji", "emoji/with", "emoji/summary.json"}


def test_a_failing_part_does_not_keep_the_others_from_running(tmp_path):
    settings = {"OUT": str(tmp_path / "out"), "VENV": str(tmp_path / "none"), "DATA": "nowhere"}
    done = gpu_sh("training", "sampling", **settings)
    assert done.returncode == 1
    assert "failed: training sampling; their logs are in" in done.stderr


def test_an_unknown_part_is_named(tmp_path):
    done = gpu_sh("train", OUT=str(tmp_path))
    assert done.returncode == 2
    assert "unknown part 'train': must be one of install, attention, training," in done.stderr

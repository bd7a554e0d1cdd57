"""The comparison with diffusers at toy size: equal networks, every flag, every line."""

import json
import os

import jax
import jax.numpy as jnp
import pytest
from jax import lax

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from benchmarks import torch_unet, unet_vs_diffusers  # noqa: E402
from benchmarks.jax_unet import JaxUNet  # noqa: E402

TINY = [
    "--resolution=8",
    "--batch_size=2",
    "--sample_batch_size=1",
    "--width=16",
    "--multipliers=1,2",
    "--attention_levels=1",
    "--head_dim=8",
    "--groups=8",
    "--text_dim=32",
    "--text_tokens=3",
    "--num_steps=2",
    "--turns=1",
    "--seconds=0",
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core affinity here")
def test_command(tmp_path, capsys, same_threads_afterwards):
    path = tmp_path / "result.json"
    for what, dtype in (("training", "float32"), ("sampling", "bfloat16")):
        flags = [f"--what={what}", f"--dtype={dtype}", "--threads=1", f"--json={path}"]
        unet_vs_diffusers.main([*TINY, *flags])
        result = json.loads(path.read_text())
        assert all(rate > 0 for side in result[what]["rates"].values() for rate in side)
        assert result[what]["ratio_of_medians"] > 0
        assert result[what]["mfu"] is None
        assert result["threads"] == 1
    ours, theirs = (result["parameters"][side] for side in ("ours", "diffusers"))
    assert abs(theirs / ours - 1) < 0.001
    # The same network: the same operations, but for the text's path.
    ours_flops, their_flops = (result["forward_flops"][side] for side in ("ours", "diffusers"))
    assert abs(their_flops / ours_flops - 1) < 0.02
    printed = capsys.readouterr().out
    assert f"{ours:,} parameters" in printed
    assert "images/s" in printed and "GFLOP" in printed


@pytest.mark.parametrize("peer", torch_unet.KINDS)
@pytest.mark.parametrize("width", [48, 64])
def test_default_networks_are_comparable(peer, width):
    flags = [f"--width={width}", "--head_dim=16", "--groups=16", "--attention_levels=1,2"]
    work = unet_vs_diffusers.workload(unet_vs_diffusers.parse(flags))
    ours = JaxUNet(work).parameter_count()
    found = torch_unet.matching_width(work, peer, ours)
    assert torch_unet.count(work, peer, found) == pytest.approx(ours, rel=0.05)


def test_networks_too_different_are_refused():
    flags = ["--peer=stable_diffusion", "--what=training"]
    with pytest.raises(ValueError, match="more than 5% apart"):
        unet_vs_diffusers.main(TINY + flags)


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--batch_size=0", "batch_size = 0: must be at least 1"),
        ("--resolution=7", "resolution = 7: must be"),
        ("--groups=7", "unet.groups = 7: must divide"),
        ("--threads=4096", "threads = 4096"),
    ],
)
def test_bad_sizes_end_in_one_sentence(flag, sentence):
    with pytest.raises(ValueError, match=sentence):
        unet_vs_diffusers.main([*TINY, flag])


@pytest.mark.parametrize(("side", "kernel", "stride"), [(5, 3, 1), (8, 3, 2), (4, 1, 1)])
def test_torch_convolutions_are_counted_as_xla_counts_them(side, kernel, stride):
    def convolution(x, k):
        padding = ((kernel // 2, kernel // 2),) * 2
        names = ("NCHW", "OIHW", "NCHW")
        return lax.conv_general_dilated(x, k, (stride,) * 2, padding, dimension_numbers=names)

    shapes = [(2, 3, side, side), (4, 3, kernel, kernel)]
    lowered = jax.jit(convolution).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    outcome = jax.eval_shape(convolution, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    half = [kernel // 2] * 2
    counted = torch_unet._convolution_flops(
        *shapes, None, [stride] * 2, half, [1, 1], False, [0, 0], 1, out_shape=outcome.shape
    )
    assert counted == lowered.cost_analysis()["flops"]

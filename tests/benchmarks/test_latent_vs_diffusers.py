"""The comparison of latent U-Nets at toy size: the same network, its convolutions, every line."""

import collections
import json
import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("diffusers", reason="diffusers is not installed")

from benchmarks import convolutions, latent_vs_diffusers, torch_unet  # noqa: E402
from benchmarks.jax_unet import JaxUNet  # noqa: E402

TINY = [
    "--resolution=8",
    "--batch_size=2",
    "--sample_batch_size=1",
    "--width=16",
    "--multipliers=1,2",
    "--attention_levels=0",
    "--num_blocks=1",
    "--groups=8",
    "--text_dim=24",
    "--text_tokens=3",
    "--num_steps=2",
    "--turns=1",
    "--seconds=0",
]


def tiny(*flags):
    return latent_vs_diffusers.workload(latent_vs_diffusers.parse([*TINY, *flags]))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no core affinity here")
def test_command(tmp_path, capsys, same_threads_afterwards):
    path = tmp_path / "result.json"
    latent_vs_diffusers.main([*TINY, "--threads=1", f"--json={path}"])
    result = json.loads(path.read_text())
    # The same network: the same parameters, the same operations.
    for what in ("parameters", "forward_flops"):
        assert result[what]["ours"] == result[what]["diffusers"]
    for what in ("training", "sampling"):
        assert result[what]["ratio_of_medians"] > 0
        assert result[what]["aim"] is None
    measured = result["convolutions"]
    for what in ("forward pass", "convolutions alone"):
        assert measured[what]["ratio_of_medians"] > 0
    for side, share in measured["share_of_time"].items():
        (whole,), (part,) = (
            measured[what]["rates"][side] for what in ("forward pass", "convolutions alone")
        )
        assert share == pytest.approx(whole / part)
    printed = capsys.readouterr().out
    assert f"{result['parameters']['ours']:,} parameters (+0.00%)" in printed
    assert "convolutions of a forward pass: ours" in printed


def test_published_size_is_stable_diffusion_s():
    flags = ["--width=320", "--heads=8", "--resolution=64"]
    work = latent_vs_diffusers.workload(latent_vs_diffusers.parse(flags))
    assert JaxUNet(work).parameter_count() == 859_520_964
    assert torch_unet.count(work, "stable_diffusion", 320) == 859_520_964


def test_both_sides_have_stable_diffusion_s_noise():
    """Latents are neither clipped nor noised as pixels are, on either side."""
    work = tiny()
    theirs = torch_unet.TorchUNet(work, "stable_diffusion", 16)._scheduler()
    assert (theirs.config.beta_start, theirs.config.beta_end) == (0.00085, 0.012)
    assert theirs.config.beta_schedule == work.schedule == "scaled_linear"
    assert not theirs.config.clip_sample
    images, text = work.arrays(2)
    assert images.shape == (2, 8, 8, 4) and text.shape == (2, 3, 24)


def test_convolutions_are_those_that_torch_does():
    work = tiny()
    call = JaxUNet(work).forward_pass(2)
    ours = convolutions.convolutions_of(*call)
    theirs, unet = [], torch_unet.build(work, "stable_diffusion", 16)
    operations = 0

    def note(module, inputs):
        batch, channels, *sides = inputs[0].shape
        kernel = (*module.kernel_size, channels, module.out_channels)
        padding = tuple((side, side) for side in module.padding)
        x = (batch, *sides, channels)
        theirs.append(convolutions.Convolution(x, kernel, module.stride[0], padding))

    def count(module, inputs, output):
        nonlocal operations
        settings = (module.stride, module.padding, module.dilation, False, [0, 0], 1)
        x, weight = inputs[0].shape, module.weight.shape
        operations += torch_unet._convolution_flops(
            x, weight, None, *settings, out_shape=output.shape
        )

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_pre_hook(note)
            module.register_forward_hook(count)
    images, text = (torch.from_numpy(array) for array in work.arrays(2))
    with torch.no_grad():
        unet(images.permute(0, 3, 1, 2), torch.ones(2), text)
    assert collections.Counter(ours) == collections.Counter(theirs)
    # One of the two images.
    whole = torch_unet.TorchUNet(work, "stable_diffusion", 16).forward_flops()
    assert convolutions.share_of_flops(*call) == pytest.approx(operations / 2 / whole)


def test_convolutions_alone_are_the_same_in_both():
    work = tiny()
    for each in set(convolutions.convolutions_of(*JaxUNet(work).forward_pass(1))):
        x, kernel = each.arrays()
        ours = convolutions.in_jax([each], "float32", None)()[0]
        layout = torch_unet.LAYOUTS["channels_last"]
        theirs = convolutions.in_torch([each], "float32", "cpu", layout)()
        assert float(ours[0, 0, 0, 0]) == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_bad_sizes_end_in_one_sentence():
    with pytest.raises(ValueError, match="latent_unet.heads = 3: must"):
        tiny("--heads=3")
    with pytest.raises(ValueError, match="resolution = 7: must"):
        tiny("--resolution=7")

"""Throughput of our base U-Net against diffusers' UNet2DConditionModel in torch.

  python -m benchmarks.unet_vs_diffusers                      # about 5 minutes on 2 cores
  python -m benchmarks.unet_vs_diffusers --what=sampling --resolution=64 --turns=3 --json=r.json
  python -m benchmarks.gpu_unet                               # the same on a GPU, at its size

Measured, in turns (ours, theirs, ours, theirs, ...) in one process after a warm-up:
  training: one step of forward, backward and AdamW; loss on eps, 10 % of prompts dropped. No
    gradient clipping, no moving average, on either side.
  sampling: guided DDIM, two estimates per step in one doubled batch. Ours is one jitted program
    (contextdiff_jax.sampling.loop); theirs a DDIMScheduler loop under torch.inference_mode.
Equal: resolution, batch size, text tokens and their width, dtype, cores, number of parameters
(within 5 %; checked). torch runs in the memory layout that a trial (not compiled) finds faster,
with the fused AdamW and scaled_dot_product_attention; --torch_compile=inductor also compiles it.
With --dtype=bfloat16 both train with float32 parameters and optimizer; in sampling torch's
parameters are cast to bfloat16 once, ours stay float32 and are cast by the compiled program.

Peers:
  deepfloyd_if (default): the blocks of DeepFloyd's IF, diffusers' implementation of Imagen: the
    same network as ours, block by block. Differences: the text is normalized by GroupNorm instead
    of LayerNorm before cross-attention, pooled before its projection instead of after it, and its
    null condition is zeros instead of a learned token.
  stable_diffusion: the same number of blocks, attention at the same levels, but each attention is
    a transformer block (self-attention, cross-attention, gated MLP), resampling is a plain
    convolution, and the width is adjusted so that the number of parameters matches, which it
    does with --attention_levels=1,2, the default of diffusers (none at the lowest resolution).
FLOPs, on both sides: matrix products, convolutions and attention; a multiply-add is two, padding is
not counted. MFU (model FLOPs utilization, Chowdhery et al. 2022) is their rate as a share of the
device's peak (benchmarks/devices.py, or --peak_tflops); a training step counts as three calls.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import typing
from collections.abc import Sequence

import diffusers
import jax
import torch

from benchmarks import torch_unet
from benchmarks.devices import peak_flops
from benchmarks.jax_unet import JaxUNet
from benchmarks.turns import Side, compare, cores, load, take_turns, use_cores
from benchmarks.workload import Workload
from contextdiff_jax.networks.config import UNetConfig
from contextdiff_jax.networks.dot_product_attention import Implementation, check_implementation
from contextdiff_jax.system.host_memory import keep_freed_memory

TOLERANCE = 0.05  # of the number of parameters
AIMS = {"training": 1.2, "sampling": 1.5}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split(","))

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unet_vs_diffusers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=tuple(torch_unet.DEVICES), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--attention", choices=typing.get_args(Implementation), default="auto", help="ours")
    add("--peak_tflops", type=float, help="of the device, for MFU; by default from a table")
    add("--what", choices=("training", "sampling", "both"), default="both")
    add("--peer", choices=torch_unet.KINDS, default=torch_unet.KINDS[0])
    add("--resolution", type=int, default=32)
    add("--batch_size", type=int, default=8, help="images of a training step")
    add("--sample_batch_size", type=int, default=4, help="images drawn together")
    add("--width", type=int, default=64, help="channels of our first level")
    add("--multipliers", type=numbers, default=(1, 2, 3, 4), help="of the width, by level")
    add("--num_blocks", type=int, default=1, help="blocks of each level on the way down")
    add("--attention_levels", type=numbers, default=(1, 2, 3))
    add("--head_dim", type=int, default=32)
    add("--groups", type=int, default=32, help="of every GroupNorm")
    add("--text_dim", type=int, default=256)
    add("--text_tokens", type=int, default=77)
    add("--num_steps", type=int, default=50, help="of sampling")
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=6.0, help="of a turn; at least one unit of work is done")
    add("--threads", type=int, help="cores for either side; all by default")
    add("--torch_compile", metavar="BACKEND", help="compile the peer, e.g. with inductor")
    add("--json", type=pathlib.Path, help="file for the results")
    return parser.parse_args(argv)


def workload(args: argparse.Namespace) -> Workload:
    """Returns the checked sizes; ValueError for such that cannot work."""
    unet = UNetConfig(
        width=args.width,
        multipliers=args.multipliers,
        num_blocks=args.num_blocks,
        attention_levels=args.attention_levels,
        head_dim=args.head_dim,
        groups=args.groups,
        text_dim=args.text_dim,
        text_width=args.text_dim,
        # Blocks of this size compile quickly, and a CPU runs scanned convolutions slowly.
        scan_blocks=False,
        attention_implementation=args.attention,
    )
    work = Workload(
        unet,
        args.resolution,
        args.batch_size,
        args.sample_batch_size,
        args.text_tokens,
        args.device,
        args.dtype,
    )
    work.validate()
    return work


def check_device(args: argparse.Namespace) -> None:
    """Raises ValueError where a framework does not have the device, or ours not the attention."""
    if jax.default_backend() != args.device:
        raise ValueError(
            f"jax runs on {jax.default_backend()}, --device={args.device}: set "
            f"JAX_PLATFORMS={torch_unet.DEVICES[args.device]}"
        )
    if args.device == "gpu" and not torch.cuda.is_available():
        raise ValueError("--device=gpu: this torch has no CUDA device")
    check_implementation(args.attention, args.device, args.dtype, "--attention")


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison; returns what --json writes."""
    args = parse(argv)
    work = workload(args)
    keep_freed_memory()  # for both sides: they share the process
    if args.threads is not None:
        use_cores(args.threads)
    torch.set_num_threads(cores())
    check_device(args)
    ours = JaxUNet(work)
    parameters = ours.parameter_count()
    width = torch_unet.matching_width(work, args.peer, parameters)
    theirs = torch_unet.TorchUNet(work, args.peer, width, args.torch_compile)
    results = {"settings": vars(args) | {"json": None}, "threads": cores(), "load_before": load()}
    results |= describe(ours, theirs, parameters)
    for what in ("training", "sampling") if args.what == "both" else (args.what,):
        print(f"{what}:")
        sides, layout = competitors(what, ours, theirs, args.num_steps)
        rates = take_turns(sides, args.turns, args.seconds)
        results[what] = {"rates": rates, "layout": layout, "aim": AIMS[what]}
        results[what] |= compare(rates, "ours", "diffusers")
        calls = 3 if what == "training" else 2 * args.num_steps
        results[what]["mfu"] = utilization(rates, results["forward_flops"], calls, peak(args))
    results["load_after"] = load()
    print(f"before: {results['load_before']}; after: {results['load_after']}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def describe(ours: JaxUNet, theirs: torch_unet.TorchUNet, parameters: int) -> dict:
    """Prints and returns sizes and versions. ValueError where the sizes are not comparable."""
    work = ours.work
    peers = torch_unet.count(work, theirs.kind, theirs.width)
    flops, peers_flops = ours.forward_flops(), theirs.forward_flops()
    print(
        f"{work.resolution}x{work.resolution}, batch {work.batch_size} (sampling "
        f"{work.sample_batch_size}), {work.text_tokens} text tokens, {work.dtype}, "
        f"{jax.devices()[0].device_kind}, {cores()} cores, jax {jax.__version__}, "
        f"torch {torch.__version__}, diffusers {diffusers.__version__}\n"
        f"ours: width {work.unet.width}, {parameters:,} parameters, "
        f"{flops / 1e9:.3f} GFLOP per image and call\n"
        f"diffusers, {theirs.kind}: width {theirs.width}, {peers:,} parameters "
        f"({peers / parameters - 1:+.2%}), {peers_flops / 1e9:.3f} GFLOP "
        f"({peers_flops / flops - 1:+.2%})",
        flush=True,
    )
    if abs(peers / parameters - 1) > TOLERANCE:
        raise ValueError(
            f"the nearest {theirs.kind} network has {peers:,} parameters, ours {parameters:,}: "
            f"more than {TOLERANCE:.0%} apart; choose another --width or fewer --groups"
        )
    return {
        "parameters": {"ours": parameters, "diffusers": peers},
        "forward_flops": {"ours": flops, "diffusers": peers_flops},
        "device": jax.devices()[0].device_kind,
        "widths": {"ours": work.unet.width, "diffusers": theirs.width},
        "versions": {
            "jax": jax.__version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }


def peak(args: argparse.Namespace) -> float | None:
    """Returns the device's peak operations per second: the flag's, the table's or unknown."""
    if args.peak_tflops is not None:
        return 1e12 * args.peak_tflops
    return peak_flops(jax.devices()[0].device_kind) if args.dtype == "bfloat16" else None


def utilization(
    rates: dict[str, list[float]], forward_flops: dict[str, float], calls: int, peak: float | None
) -> dict[str, float] | None:
    """Prints and returns the MFU of each side's median rate; None where the peak is unknown.

    calls: of the network, per image.
    """
    if peak is None:
        return None
    found = {
        side: statistics.median(rates[side]) * calls * forward_flops[side] / peak for side in rates
    }
    shown = ", ".join(f"{side} {share:.1%}" for side, share in found.items())
    print(f"  MFU of {peak / 1e12:,.4g} TFLOP/s: {shown}")
    return found


def competitors(
    what: str, ours: JaxUNet, theirs: torch_unet.TorchUNet, num_steps: int
) -> tuple[list[Side], str]:
    """Returns both sides of one comparison, and the layout that torch runs in."""
    work, eager = ours.work, dataclasses.replace(theirs, backend=None)
    if what == "training":
        layout = torch_unet.faster_layout(eager.training)
        runs, images = (ours.training(), theirs.training(layout)), work.batch_size
    else:
        layout = torch_unet.faster_layout(lambda layout: eager.sampling(layout, 3))
        runs = (ours.sampling(num_steps), theirs.sampling(layout, num_steps))
        images = work.sample_batch_size
    return [Side("ours", runs[0], images), Side("diffusers", runs[1], images)], layout


if __name__ == "__main__":
    main()

"""What the comparisons with diffusers share: flags, the course of one, sizes, ratios and MFU.

benchmarks/unet_vs_diffusers.py and benchmarks/latent_vs_diffusers.py say which networks;
benchmarks/edit_vs_diffusers.py compares whole edits of a clip.
"""

import argparse
import dataclasses
import pathlib
import statistics
import typing
from collections.abc import Mapping
from typing import Any

import diffusers
import jax
import torch

from benchmarks import convolutions, torch_unet
from benchmarks.devices import peak_flops
from benchmarks.jax_unet import JaxUNet
from benchmarks.turns import Side, compare, cores, finish, load, take_turns, use_cores
from benchmarks.workload import Workload
from contextdiff_jax.networks.dot_product_attention import Implementation, check_implementation
from contextdiff_jax.system.host_memory import keep_freed_memory

TOLERANCE = 0.05  # of the number of parameters
PARTS = ("training", "sampling", "convolutions")


def numbers(text: str) -> tuple[int, ...]:
    """Returns the numbers of a flag that has commas between them."""
    return tuple(int(part) for part in text.split(","))


def flags_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Returns a parser with the flags that do not depend on the network."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=tuple(torch_unet.DEVICES), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--attention", choices=typing.get_args(Implementation), default="auto", help="ours")
    add("--peak_tflops", type=float, help="of the device, for MFU; by default from a table")
    add("--what", choices=(*PARTS, "both", "all"), default="both", help="both: all but the last")
    add("--sample_batch_size", type=int, default=4, help="images drawn together")
    add_timing_flags(parser)
    return parser


def add_timing_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that do not depend on what is compared."""
    add = parser.add_argument
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=6.0, help="of a turn; at least one unit of work is done")
    add("--threads", type=int, help="cores for either side; all by default")
    add("--torch_compile", metavar="BACKEND", help="compile the peer, e.g. with inductor")
    add("--json", type=pathlib.Path, help="file for the results")


def begin(args: argparse.Namespace) -> dict[str, Any]:
    """Gives both sides their cores; returns the first results: flags, cores, versions and load."""
    keep_freed_memory()  # for both sides: they share the process
    if args.threads is not None:
        use_cores(args.threads)
    torch.set_num_threads(cores())
    return {
        "settings": vars(args) | {"json": None},
        "threads": cores(),
        "versions": versions(),
        "load_before": load(),
    }


def versions() -> dict[str, str]:
    """Returns the libraries' versions."""
    return {library.__name__: library.__version__ for library in (jax, torch, diffusers)}


def conditions() -> str:
    """Returns the device, the cores and the versions, for people."""
    shown = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{jax.devices()[0].device_kind}, {cores()} cores, {shown}"


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


def run(
    args: argparse.Namespace, work: Workload, peer: str, aims: Mapping[str, float | None]
) -> dict[str, Any]:
    """Runs the comparison of work with a peer of torch_unet.KINDS; returns what --json writes.

    aims: ratios that were hoped for, by part; None for none.
    """
    results = begin(args)
    check_device(args)
    ours = JaxUNet(work)
    parameters = ours.parameter_count()
    width = torch_unet.matching_width(work, peer, parameters)
    theirs = torch_unet.TorchUNet(work, peer, width, args.torch_compile)
    results |= describe(ours, theirs, parameters)
    for what in {"all": PARTS, "both": PARTS[:2]}.get(args.what, (args.what,)):
        print(f"{what}:")
        if what == "convolutions":
            results[what] = compare_convolutions(args, ours, theirs)
            continue
        sides, layout = competitors(what, ours, theirs, args.num_steps)
        rates = take_turns(sides, args.turns, args.seconds)
        results[what] = {"rates": rates, "layout": layout, "aim": aims.get(what)}
        results[what] |= compare(rates, "ours", "diffusers")
        calls = 3 if what == "training" else 2 * args.num_steps
        results[what]["mfu"] = utilization(rates, results["forward_flops"], calls, peak(args))
    return finish(results, args.json)


def describe(ours: JaxUNet, theirs: torch_unet.TorchUNet, parameters: int) -> dict:
    """Prints and returns sizes and versions. ValueError where the sizes are not comparable."""
    work = ours.work
    peers = torch_unet.count(work, theirs.kind, theirs.width)
    flops, peers_flops = ours.forward_flops(), theirs.forward_flops()
    print(
        f"{work.resolution}x{work.resolution}, batch {work.batch_size} (sampling "
        f"{work.sample_batch_size}), {work.text_tokens} text tokens, {work.dtype}, "
        f"{conditions()}\n"
        f"ours: width {work.unet.channels[0]}, {parameters:,} parameters, "
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
        "widths": {"ours": work.unet.channels[0], "diffusers": theirs.width},
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


def compare_convolutions(
    args: argparse.Namespace, ours: JaxUNet, theirs: torch_unet.TorchUNet
) -> dict[str, Any]:
    """Measures the convolutions of a guided step's forward pass, alone and as a share of it."""
    work, batch = ours.work, 2 * ours.work.sample_batch_size
    call = ours.forward_pass(batch)
    found = convolutions.convolutions_of(*call)
    share = convolutions.share_of_flops(*call)
    print(f"  {len(found)} convolutions of several pixels: {share:.1%} of the operations")
    layout = torch_unet.faster_layout(lambda layout: theirs.forward(layout, batch))
    result = convolutions.compare_shares(
        (ours.forward(batch), theirs.forward(layout, batch)),
        (
            convolutions.in_jax(found, work.dtype, ours.options),
            convolutions.in_torch(found, work.dtype, theirs.device, torch_unet.LAYOUTS[layout]),
        ),
        batch,
        args.turns,
        args.seconds,
    )
    return result | {"count": len(found), "share_of_flops": share, "layout": layout}

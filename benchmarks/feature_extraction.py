"""Throughput of Inception features: ours against torch-fidelity's, in images per second.

  python -m benchmarks.feature_extraction                     # about 5 minutes on 2 cores
  python -m benchmarks.feature_extraction --features=2048,logits_unbiased --json=result.json

Measured, in turns (ours, theirs, ours, theirs, ...) in one process after a warm-up, from the same
8-bit images in memory to features in memory: resizing to 299, normalizing, the network.
  ours: evaluation/extraction.py with the protocol torch-fidelity, all images a stream of batches.
  torch-fidelity: FeatureExtractorInceptionV3 on one batch after the other, without gradients, in
    the memory layout that a trial finds faster.
Equal: images, batch size, weights (drawn), precision (float32), cores. That the features are equal
is checked before anything is measured.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch

from benchmarks.turns import Side, compare, cores, finish, load, seconds_of, take_turns, use_cores
from contextdiff_jax.encoders.inception import check_features
from contextdiff_jax.evaluation.extraction import Extraction, collect
from contextdiff_jax.evaluation.extractors import inception_extractor
from contextdiff_jax.system.host_memory import keep_freed_memory
from tests.oracles.torch_inception import RandomInception

_TOLERANCE = 1e-4


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; ValueError for sizes that cannot work."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feature_extraction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--features", default="2048", help="comma-separated: 64, 192, 768, 2048, logits_unbiased")
    add("--resolution", type=int, default=256, help="side of the images")
    add("--batch_size", type=int, default=16)
    add("--batches", type=int, default=2, help="of a unit of work")
    add("--turns", type=int, default=5)
    add("--seconds", type=float, default=10.0, help="of a turn; at least one unit of work is done")
    add("--threads", type=int, help="cores for either side; all by default")
    add("--json", type=pathlib.Path, help="file for the results")
    args = parser.parse_args(argv)
    args.features = args.features.split(",")
    check_features(args.features)
    for name in ("resolution", "batch_size", "batches", "turns"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} = {getattr(args, name)}: must be at least 1")
    return args


def torch_runs(
    module: RandomInception, batches: Sequence[np.ndarray], layout: torch.memory_format
) -> Callable[[], dict[str, np.ndarray]]:
    """Returns a function that gives torch-fidelity's features of all batches."""
    module = module.to(memory_format=layout)

    def run() -> dict[str, np.ndarray]:
        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(memory_format=layout))
                for batch in batches
            ]
        columns = zip(*parts, strict=True)
        return {
            name: torch.cat(column).numpy()
            for name, column in zip(module.features_list, columns, strict=True)
        }

    return run


def faster_layout(module: RandomInception, batch: np.ndarray) -> torch.memory_format:
    """Returns the memory layout in which torch-fidelity's module takes less time."""

    def seconds(layout: torch.memory_format) -> float:
        run = torch_runs(module, [batch], layout)
        run()
        return min(seconds_of(run) for _ in range(2))

    return min((torch.contiguous_format, torch.channels_last), key=seconds)


def main(argv: Sequence[str] | None = None) -> dict:
    """Runs the comparison; returns what --json writes."""
    args = parse(argv)
    if args.threads is not None:
        use_cores(args.threads)
    torch.set_num_threads(cores())
    keep_freed_memory()
    shape = (args.batch_size, args.resolution, args.resolution, 3)
    generator = np.random.default_rng(0)
    batches = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(args.batches)]
    module = RandomInception(args.features)
    with tempfile.TemporaryDirectory() as folder:
        weights = module.save(pathlib.Path(folder) / "inception.safetensors")
        extractor = inception_extractor(weights, args.features)
    extraction = Extraction(extractor, args.batch_size, jax.local_devices()[:1])

    def ours() -> dict[str, np.ndarray]:
        return collect(extraction(batches))

    layout = faster_layout(module, batches[0])
    theirs = torch_runs(module, batches, layout)
    error = largest_error(ours(), theirs())
    print(
        f"{args.batches} x {args.batch_size} images of {args.resolution}x{args.resolution}, "
        f"features {', '.join(args.features)} (largest relative difference {error:.1e}), "
        f"{cores()} cores; torch in {layout}"
    )
    settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
    results = {"settings": settings, "error": error, "layout": str(layout), "load_before": load()}
    images = args.batches * args.batch_size
    sides = [Side("ours", ours, images), Side("torch-fidelity", theirs, images)]
    rates = take_turns(sides, args.turns, args.seconds)
    results |= {"rates": rates} | compare(rates, "ours", "torch-fidelity")
    return finish(results, args.json)


def largest_error(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Returns the largest relative difference; ValueError where the features are not the same."""
    error = max(
        float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
        for name in theirs
    )
    if not error <= _TOLERANCE:
        raise ValueError(f"features differ by {error:.1e}, more than {_TOLERANCE}")
    return error


if __name__ == "__main__":
    main()

"""Our metrics against those of other packages, on the same inputs: the largest relative errors.

  python -m benchmarks.metric_agreement --json=agreement.json
  python -m benchmarks.metric_agreement --weights=inception_to_mixed_7.safetensors --images=PHOTOS

Inputs are drawn. So are the networks' weights, with no layer at its default; with --weights (named
as in TensorFlow's graph, up to mixed_7) and --images the whole way from pictures to FID-768 is
compared too. An error is the largest difference over the largest of the oracle's values.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import tempfile
import warnings
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import prdc
import scipy.linalg
import torch
from cleanfid.fid import fid_from_feats
from cleanfid.resize import build_resizer
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from contextdiff_jax.encoders.inception import FEATURES, IMAGE_SIZE, SPATIAL
from contextdiff_jax.evaluation.extraction import Extraction, collect
from contextdiff_jax.evaluation.extractors import CLIP_LAYER, clip_extractors, inception_extractor
from contextdiff_jax.evaluation.frechet import frechet_distance
from contextdiff_jax.evaluation.inception_score import inception_score
from contextdiff_jax.evaluation.precision_recall import precision_recall
from contextdiff_jax.evaluation.resizing import PROTOCOLS
from contextdiff_jax.evaluation.similarity import clip_score
from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics
from tests.oracles.torch_clip import CAPTIONS, save_random_clip
from tests.oracles.torch_inception import RandomInception, from_graph_weights

TOLERANCE = 1e-4
_IDENTITY = FeatureIdentity("drawn", "features", "none", "none")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The relative error of a metric of ours against an oracle."""

    metric: str
    oracle: str
    error: float


def agreement(metric: str, oracle: str, ours: object, theirs: object) -> Agreement:
    """Compares two numbers, or two arrays of one shape."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{metric}: our shape {ours.shape} is not {oracle}'s {theirs.shape}")
    return Agreement(metric, oracle, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))


class _Passed(torch.nn.Module):
    """In place of a network: its input is the features already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def frechet() -> Iterator[Agreement]:
    """Frechet distances of the same features, more of them than their width."""
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(96, 96)) / 10
    first = generator.normal(size=(500, 96)) @ mixing
    second = 1.2 * generator.normal(size=(400, 96)) @ mixing + 0.1
    statistics = [FeatureStatistics.of(x, _IDENTITY, "drawn") for x in (first, second)]
    ours = frechet_distance(*statistics).distance
    both = [fid_features_to_statistics(torch.tensor(x)) for x in (first, second)]
    theirs = fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    yield agreement("Frechet distance", "torch-fidelity", ours, theirs)
    metric = FrechetInceptionDistance(feature=_Passed(96)).set_dtype(torch.float64)
    metric.update(torch.tensor(first), real=True)
    metric.update(torch.tensor(second), real=False)
    yield agreement("Frechet distance", "torchmetrics", ours, metric.compute().item())
    yield agreement("Frechet distance", "clean-fid", ours, fid_from_feats(first, second))
    covariances = [np.cov(x, rowvar=False) for x in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    shift = first.mean(0) - second.mean(0)
    theirs = shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * root.real)
    yield agreement("Frechet distance", "scipy.linalg.sqrtm", ours, theirs)


def inception_scores() -> Iterator[Agreement]:
    """Mean and spread of the scores of the same logits."""
    logits = 3 * np.random.default_rng(1).normal(size=(503, 1008)).astype(np.float32)
    theirs = isc_features_to_metric(torch.tensor(logits))
    for name in ("mean", "std"):
        ours = getattr(inception_score(logits), name)
        yield agreement(
            f"Inception Score, {name}", "torch-fidelity", ours, theirs[f"inception_score_{name}"]
        )
    metric = InceptionScore(feature=_Passed(1008), splits=1)  # one part: their order is random
    metric.update(torch.tensor(logits, dtype=torch.float64))
    ours = inception_score(logits, splits=1, shuffle_seed=None).mean
    yield agreement("Inception Score, mean", "torchmetrics", ours, metric.compute()[0].item())


def precision_recalls() -> Iterator[Agreement]:
    """The shares of the same features; on a grid, where many distances are equal, too."""
    generator = np.random.default_rng(2)
    smooth = generator.normal(size=(700, 16)), 0.8 * generator.normal(size=(600, 16)) + 0.3
    grid = generator.integers(0, 3, (300, 5)), generator.integers(0, 3, (200, 5))
    names = ("precision", "recall", "density", "coverage")
    for kind, pair in (("", smooth), (" of ties", grid)):
        real, generated = (features.astype(np.float32) for features in pair)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = prdc.compute_prdc(real, generated, 3)
        ours = precision_recall(real, generated, 3, "open")
        for name in names:
            yield agreement(f"{name}{kind}", "prdc", getattr(ours, name), theirs[name])
        theirs = calculate_precision_recall_full(torch.tensor(generated), torch.tensor(real), 3)
        ours = precision_recall(real, generated, 3, "closed")
        for name, value in zip(names[:2], theirs, strict=True):
            yield agreement(f"{name}{kind}", "torch-fidelity", getattr(ours, name), value)


def resizing() -> Iterator[Agreement]:
    """Inception's input of drawn images, enlarged and shrunk."""
    for height, width in ((256, 256), (48, 500), (480, 641)):
        shape = f"{height}x{width}"
        images = np.random.default_rng(3).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        tensor = torch.tensor(images).permute(0, 3, 1, 2).float()
        size = (IMAGE_SIZE, IMAGE_SIZE)
        theirs = {
            "torch-fidelity": interpolate_bilinear_2d_like_tensorflow1x(
                tensor, size=size, align_corners=False
            ).permute(0, 2, 3, 1),
            "clean-fid": torch.tensor(build_resizer("clean")(images[0]))[None],
        }
        for name, resized in theirs.items():
            ours = PROTOCOLS[name](images, IMAGE_SIZE)
            yield agreement(f"resizing of {shape}", name, ours, (resized - 128) / 128)
        half_pixel = torch.nn.functional.interpolate(tensor / 255, size, mode="bilinear")
        theirs = 2 * half_pixel.permute(0, 2, 3, 1) - 1
        ours = PROTOCOLS["pytorch-fid"](images, IMAGE_SIZE)
        yield agreement(f"resizing of {shape}", "torch (as pytorch-fid)", ours, theirs)


def inception() -> Iterator[Agreement]:
    """Every feature of drawn images, by drawn weights."""
    images = np.random.default_rng(4).integers(0, 256, (2, 64, 80, 3), dtype=np.uint8)
    images[1] = np.linspace(0, 255, 80).astype(np.uint8)[None, :, None]
    shared = [name for name in FEATURES if name != SPATIAL]
    theirs, one = RandomInception(shared), jax.local_devices()[:1]
    with tempfile.TemporaryDirectory() as folder:
        path = theirs.save(pathlib.Path(folder) / "inception.safetensors")
        extraction = Extraction(inception_extractor(path, FEATURES), 2, one)
    ours = collect(extraction([images]))
    maps = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: maps.append(call[2]))
    features = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    for name, values in zip(shared, features, strict=True):
        yield agreement(f"Inception features {name}", "torch-fidelity", ours[name], values)
    # ADM's mixed_6/conv, of which sFID takes seven channels.
    values = maps[0][:, :7].permute(0, 2, 3, 1).flatten(1)
    yield agreement(f"Inception features {SPATIAL}", "torch-fidelity", ours[SPATIAL], values)


def clip_scores() -> Iterator[Agreement]:
    """Scores of drawn images and captions, by drawn weights; nothing to resize."""
    images = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        clip = save_random_clip(pathlib.Path(folder))
        extractor, embed_texts = clip_extractors(folder)
    embeddings = collect(Extraction(extractor, 4)([images]))[CLIP_LAYER]
    ours = clip_score(embeddings, embed_texts(CAPTIONS))
    pictures = list(torch.tensor(images).permute(0, 3, 1, 2))
    theirs = torchmetrics_clip_score(pictures, list(CAPTIONS), lambda: clip).item()
    yield agreement("CLIP score, 100 cos", "torchmetrics", ours.torchmetrics, theirs)
    yield agreement("CLIP score, raw cosine", "torchmetrics", ours.mean_cosine, theirs / 100)


def real_pictures(weights: pathlib.Path, files: Sequence[pathlib.Path]) -> Iterator[Agreement]:
    """Two sets of pictures, of all sizes, from their pixels to FID-768, by real weights."""
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    theirs = from_graph_weights(weights)
    extraction = Extraction(inception_extractor(weights, ("768",)), 4, jax.local_devices()[:1])
    features = collect(extraction(image[None] for image in images))["768"]
    expected = np.concatenate(
        [theirs(torch.tensor(image).permute(2, 0, 1)[None])[0].numpy() for image in images]
    )
    yield agreement("Inception features 768, photos", "torch-fidelity", features, expected)
    half = len(images) // 2
    ours = frechet_distance(
        FeatureStatistics.of(features[:half], _IDENTITY, "first"),
        FeatureStatistics.of(features[half:], _IDENTITY, "second"),
    )
    both = [fid_features_to_statistics(torch.tensor(x)) for x in (expected[:half], expected[half:])]
    distance = fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]
    yield agreement("FID-768 of photos", "torch-fidelity", ours.distance, distance)


COMPARISONS = (frechet, inception_scores, precision_recalls, resizing, inception, clip_scores)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.metric_agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", type=pathlib.Path, help="Inception's, real, named as in TensorFlow's graph")
    add("--images", type=pathlib.Path, help="folder of .jpg and .png files for --weights")
    add("--count", type=int, default=16, help="pictures of --images that are compared")
    add("--json", type=pathlib.Path, help="file for the results")
    args = parser.parse_args(argv)
    if (args.weights is None) != (args.images is None):
        parser.error("--weights and --images go together")
    return args


def pictures(folder: pathlib.Path, count: int) -> list[pathlib.Path]:
    """Returns the first picture files; ValueError where there are too few for two sets."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".jpg", ".png"))[:count]
    if len(files) < 4:
        raise ValueError(f"--images={folder}: {len(files)} pictures, must be at least 4")
    return files


def main(argv: Sequence[str] | None = None) -> list[Agreement]:
    """Prints the table; returns its rows."""
    args = parse(argv)
    rows: list[Agreement] = []
    sources = [comparison() for comparison in COMPARISONS]
    if args.weights is not None:
        sources.append(real_pictures(args.weights, pictures(args.images, args.count)))
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        for source in sources:
            for row in source:
                rows.append(row)
                print(f"| {row.metric:36} | {row.oracle:22} | {row.error:.1e} |", flush=True)
    worst = max(rows, key=lambda row: row.error)
    print(f"largest: {worst.error:.1e} ({worst.metric}, {worst.oracle}); allowed: {TOLERANCE}")
    if args.json:
        args.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()

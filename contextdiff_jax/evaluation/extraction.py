"""Features of many images: any batches in, full ones through the network, on all local devices."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from contextdiff_jax.evaluation.resizing import ResizeProtocol, check_images
from contextdiff_jax.evaluation.statistics import FeatureIdentity, FeatureStatistics, check_finite

_IN_FLIGHT = 2  # batches on the devices before the first is fetched


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A frozen network that turns images into features; evaluation/extractors.py has two.

    network: its name, recorded with the features. params: its parameters, numpy arrays. apply:
    (params, pixels (B, size, size, 3) float32) -> {layer: (B, D) float}, pure. protocol: from
    images to pixels. size: side of the pixels. weights: the identity of each layer's parameters.
    """

    network: str
    params: Any
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]]
    protocol: ResizeProtocol
    size: int
    weights: Mapping[str, str]

    @property
    def layers(self) -> tuple[str, ...]:
        """What `apply` returns."""
        return tuple(self.weights)

    def identity(self, layer: str) -> FeatureIdentity:
        """Returns what makes this layer's features comparable with others."""
        return FeatureIdentity(self.network, layer, self.weights[layer], self.protocol.name)


class Extraction:
    """An extractor with its parameters on several devices and its programs compiled once.

    batch_size: images that the network sees at a time, rounded up to a multiple of the devices.
    devices: all local ones by default.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        batch_size: int = 64,
        devices: Sequence[jax.Device] | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be at least 1")
        mesh = Mesh(np.asarray(devices or jax.local_devices(), dtype=object), ("data",))
        self.extractor = extractor
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("data"))
        self._params = jax.device_put(extractor.params, NamedSharding(mesh, PartitionSpec()))
        self._resize = jax.jit(lambda images: extractor.protocol(images, extractor.size))

        def apply(params: Any, pixels: jax.Array) -> dict[str, jax.Array]:
            # Accelerators round the operands of products by default; other tools' numbers do not.
            with jax.default_matmul_precision("highest"):
                features = extractor.apply(params, pixels)
            return jax.tree.map(lambda x: x.astype(jnp.float32), features)

        self._apply = jax.jit(apply)

    def __call__(
        self, batches: Iterable[np.ndarray], total: int | None = None, description: str = "features"
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields {layer: (n, D) float32 array} for the images in order, at most batch_size a time.

        Args:
          batches: images (N, H, W, 3) uint8, of any N, H and W; resizing is compiled anew for
            every other shape, the network is not.
          total: images to come, for the time left.
          description: of the progress bar.

        Raises:
          ValueError: a batch is of another kind, or features are NaN or infinite.
        """
        waiting: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        with tqdm(total=total, desc=description, unit="image", disable=None) as progress:
            for count, pixels in self._full_batches(batches):
                waiting.append((count, self._apply(self._params, pixels)))
                if len(waiting) > _IN_FLIGHT:
                    yield _fetch(waiting, progress)
            while waiting:
                yield _fetch(waiting, progress)

    def _full_batches(self, batches: Iterable[np.ndarray]) -> Iterator[tuple[int, jax.Array]]:
        """Yields batch_size images each, as pixels, with the number of those that count."""
        held: list[jax.Array] = []
        for images in batches:
            check_images(images)
            for start in range(0, len(images), self.batch_size):
                part = images[start : start + self.batch_size]
                if len(part) == self.batch_size:
                    part = jax.device_put(part, self._rows)
                held.append(self._resize(part))
                while sum(map(len, held)) >= self.batch_size:
                    pixels = _joined(held)
                    rest = pixels[self.batch_size :]
                    held = [rest] if len(rest) else []
                    full = pixels[: self.batch_size] if len(rest) else pixels
                    yield self.batch_size, jax.device_put(full, self._rows)
        if held:
            pixels = np.asarray(_joined(held))
            # Filled up so that it runs the same compiled program.
            filled = np.resize(pixels, (self.batch_size, *pixels.shape[1:]))
            yield len(pixels), jax.device_put(filled, self._rows)


def collect(features: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns all features of an extraction at once, {layer: (N, D) float32}."""
    parts: dict[str, list[np.ndarray]] = {}
    for batch in features:
        for layer, rows in batch.items():
            parts.setdefault(layer, []).append(rows)
    if not parts:
        raise ValueError("0 images: features need at least 1")
    return {layer: np.concatenate(rows) for layer, rows in parts.items()}


def statistics_of(
    extraction: Extraction,
    batches: Iterable[np.ndarray],
    layer: str,
    source: str,
    total: int | None = None,
) -> FeatureStatistics:
    """Returns the statistics of one layer over all images, holding one batch at a time.

    Raises ValueError for a layer that the extractor has not, no images, or as Extraction does.
    """
    extractor = extraction.extractor
    if layer not in extractor.layers:
        raise ValueError(f"layer = {layer!r}: must be one of {', '.join(extractor.layers)}")
    statistics: FeatureStatistics | None = None
    for batch in extraction(batches, total, f"features of {source}"):
        rows = batch[layer]
        if statistics is None:
            statistics = FeatureStatistics(extractor.identity(layer), rows.shape[1], source)
        statistics.update(rows)
    if statistics is None:
        raise ValueError(f"{source!r} has 0 images: statistics need at least 1")
    return statistics


def _joined(held: list[jax.Array]) -> jax.Array:
    return held[0] if len(held) == 1 else jnp.concatenate([jnp.asarray(part) for part in held])


def _fetch(
    waiting: collections.deque[tuple[int, dict[str, jax.Array]]], progress: tqdm
) -> dict[str, np.ndarray]:
    count, features = waiting.popleft()
    rows = {layer: np.asarray(values)[:count] for layer, values in features.items()}
    for layer, values in rows.items():
        check_finite(values, f"features {layer!r}")
    progress.update(count)
    return rows

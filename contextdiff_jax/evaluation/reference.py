"""The real images that drawn ones are compared with: a source of data, or statistics of one."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from absl import logging
from etils import epath

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport, Source
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.data.sources import open_source
from contextdiff_jax.evaluation.captions import data_settings
from contextdiff_jax.evaluation.feature_networks import FeatureNetwork
from contextdiff_jax.evaluation.features import FeatureFiles, extract_features, source_reader
from contextdiff_jax.evaluation.statistics import FeatureStatistics, check_comparable
from contextdiff_jax.system.interruption import Watch

STATISTICS = "statistics.npz"
"""What an evaluation leaves of its reference, for others to compare with."""


@dataclasses.dataclass(frozen=True)
class RealFeatures:
    """statistics: of the reference. features: all of them, None where only statistics are known.

    damaged: images of the reference that could not be used.
    """

    statistics: FeatureStatistics
    features: FeatureFiles | None
    damaged: int = 0


class Reference:
    """Real images, or statistics made before. Opened, and checked, before any long work.

    Raises ValueError where there is nothing to read, or the statistics are of other features.
    """

    def __init__(self, asked: Sequence[str], data: DataConfig, network: FeatureNetwork, count: int):
        """asked: as --reference has it. count: of the drawn pictures; of endless scenes as many."""
        self._network = network
        self._stored: FeatureStatistics | None = None
        self.config: DataConfig | None = None
        if len(asked) == 1 and asked[0].endswith(".npz"):
            self._stored = FeatureStatistics.load(asked[0])
            drawn = FeatureStatistics(network.identity, network.dimension, "the drawn pictures")
            check_comparable(self._stored, drawn)
            return
        config = data_settings(data, asked, "reference")
        if config.endless:
            config = dataclasses.replace(config, limit=count)
        self.config = config
        self._report = SkipReport()
        self._source: Source = open_source(config, self._report)
        probe(self._source)

    @property
    def folder(self) -> str:
        """The folder of its features in an output folder, another one for every reference."""
        key = json.dumps([dataclasses.asdict(self.config), self._network.record])
        return f"reference_{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def record(self) -> dict[str, Any]:
        """Returns which images these are, and where their statistics are kept."""
        if self.config is None:
            return {"statistics of": self._stored.source, "images": self._stored.count}
        config = self.config
        return {
            "data": self._source.name,
            "images": len(self._source),
            "made square": f"{config.resolution} px, {config.resize_mode}",
            "kept in": f"{self.folder}/{STATISTICS}",
        }

    def features(self, output: epath.PathLike, watch: Watch) -> RealFeatures:
        """Returns features and statistics, kept in `output`/folder; the same call resumes."""
        if self._stored is not None:
            return RealFeatures(self._stored, None)
        folder = epath.Path(output) / self.folder
        network, config = self._network, self.config
        count, name = len(self._source), self._source.name
        files = extract_features(
            folder / "features",
            {"features": network.record, "data": dataclasses.asdict(config)},
            count,
            source_reader(self._source, config.resolution, config.reading_threads, self._report),
            network.extract,
            watch,
        )
        source = f"{name}, {config.resolution} px {config.resize_mode}"
        statistics = FeatureStatistics(network.identity, network.dimension, source)
        for part in files.parts(network.layer):
            statistics.update(part)
        for line in self._report.summary()[1:]:
            logging.info("reference: %s", line)
        statistics.save(folder / STATISTICS)
        return RealFeatures(statistics, files, count - statistics.count)

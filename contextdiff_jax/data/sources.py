"""Opening the data source that a configuration names."""

import dataclasses

import numpy as np

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, Example, SkipReport, Source


def open_source(config: DataConfig, report: SkipReport | None = None) -> Source:
    """Opens the source, counting what is unusable at first sight in `report`.

    Raises ValueError (DataError) with one sentence if there is nothing to read.
    """
    config.validate("data")
    source = _open(config, SkipReport() if report is None else report)
    if config.caption_template:
        source = TemplatedCaptions(source, config.caption_template)
    if config.limit and config.limit < len(source):
        return FirstSamples(source, config.limit)
    return source


def _open(config: DataConfig, report: SkipReport) -> Source:
    # Imported here: a run on rendered scenes needs no tar reader, and none needs all of them.
    if config.source == "scenes" and config.scenes.context:
        from contextdiff_jax.data.context_scenes import ContextScenesSource

        return ContextScenesSource(config)
    if config.source == "scenes":
        from contextdiff_jax.data.scenes import ScenesSource

        return ScenesSource(config)
    if config.source == "folder" and config.styles.context:
        from contextdiff_jax.data.styled_folder import StyledFolderSource

        return StyledFolderSource(config, report)
    if config.source == "folder":
        from contextdiff_jax.data.folder import FolderSource

        return FolderSource(config, report)
    if config.source == "shards":
        from contextdiff_jax.data.shards import ShardSource

        return ShardSource(config, report)
    from contextdiff_jax.data.tfds_source import open_tfds

    return open_tfds(config)


class FirstSamples:
    """The first `count` samples of a source."""

    def __init__(self, source: Source, count: int):
        self.name = f"{source.name}, first {count}"
        self._source = source
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        return self._source[self._inside(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, or raises DamagedSample."""
        return self._source.captions(self._inside(index))

    def _inside(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        return index


class TemplatedCaptions:
    """A source whose captions stand in a template, in the place of "{}"."""

    def __init__(self, source: Source, template: str):
        self.name = source.name
        self._source = source
        self._template = template

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return dataclasses.replace(example, captions=self._within(example.captions))

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, or raises DamagedSample."""
        return self._within(self._source.captions(index))

    def _within(self, captions: tuple[str, ...]) -> tuple[str, ...]:
        # Not str.format: a caption may hold braces itself.
        return tuple(self._template.replace("{}", caption) for caption in captions)


def sample_captions(source: Source, count: int, seed: int) -> list[str]:
    """Returns all captions of `count` samples drawn without replacement (of all, if fewer).

    For training a tokenizer: no image is decoded. Samples without a usable caption are left out.
    """
    rng = np.random.default_rng(seed)
    picked = rng.choice(len(source), min(count, len(source)), replace=False)
    captions: list[str] = []
    for index in picked:
        try:
            captions.extend(source.captions(int(index)))
        except DamagedSample:
            continue
    return captions

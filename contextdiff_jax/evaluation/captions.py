"""Which captions an evaluation draws pictures for, and which captioned data they are from."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from etils import epath

from contextdiff_jax.arguments import read_lines
from contextdiff_jax.config import read_section
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, Source
from contextdiff_jax.generation.sampler_flags import typed
from contextdiff_jax.system.suggestions import nearest


def read_captions(path: epath.PathLike) -> list[str]:
    """Returns the captions of a text file, one a line.

    Raises ValueError for a file that is missing, empty or no UTF-8 text, and for blank lines, which
    say nothing to score.
    """
    lines = [line.strip() for line in read_lines(path, "captions")]
    if not any(lines):
        raise ValueError(f"--captions={path}: holds no caption; give one a line")
    if "" in lines:
        raise ValueError(f"--captions={path}: line {lines.index('') + 1} is blank; give a caption")
    return lines


def choose(captions: Sequence[str], count: int, seed: int) -> list[str]:
    """Returns `count` of the captions, at random but in their order.

    Raises ValueError where there are fewer.
    """
    if count > len(captions):
        raise ValueError(f"--count={count}: there are {len(captions)} captions")
    picked = np.random.default_rng(seed).choice(len(captions), count, replace=False)
    return [captions[index] for index in np.sort(picked)]


def draw_captions(source: Source, count: int, seed: int) -> list[str]:
    """Returns one random caption of each of `count` random samples of a source.

    Samples without a usable caption are passed over. Raises ValueError where too few are left.
    """
    rng = np.random.default_rng([seed, 1])
    captions: list[str] = []
    for index in _order(len(source), seed):
        if len(captions) == count:
            return captions
        try:
            found = source.captions(index)
        except DamagedSample:
            continue
        captions.append(found[int(rng.integers(len(found)))])
    if len(captions) < count:
        raise ValueError(f"--count={count}: {source.name} has {len(captions)} captioned samples")
    return captions


def _order(length: int, seed: int) -> Iterator[int]:
    """Yields 0..length - 1 in a random order, holding none of it: sources may be endless."""
    order = grain.MapDataset.range(length).shuffle(seed=seed)
    return (int(order[place]) for place in range(length))


def data_settings(base: DataConfig, settings: Sequence[str], flag: str) -> DataConfig:
    """Returns `base` with "field=value" settings of DataConfig, checked for types and choices.

    Another source, or another path, starts from the defaults instead: captions and splits of one
    data set say nothing about those of another.

    Raises ValueError naming an unknown field or what is not "field=value".
    """
    fields = [f.name for f in dataclasses.fields(DataConfig) if f.name not in ("scenes", "flip")]
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in fields:
            raise ValueError(
                f"--{flag}={setting}: must be field=value, with field one of {', '.join(fields)}"
                f"{nearest(key, fields)}"
            )
        # A path or a split may look like a number.
        changes[key] = text if isinstance(getattr(base, key), str) else typed(text)
    moved = any(changes.get(key, getattr(base, key)) != getattr(base, key) for key in _WHERE)
    values = dataclasses.asdict(base)
    if moved:
        kept = {key: values[key] for key in ("source", "resolution", "resize_mode", "threads")}
        values = dataclasses.asdict(DataConfig()) | kept
    config = read_section(DataConfig, values | changes | {"flip": False}, flag)
    config.validate(f"--{flag}")
    return config


_WHERE = ("source", "path")

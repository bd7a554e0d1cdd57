"""Reads a folder of mutated_data.py to the end, as training does, and says what must not happen."""

import json

import numpy as np

from contextdiff_jax.data.example import DamagedSample, Example, SkipReport, Source
from contextdiff_jax.data.sources import open_source, sample_captions
from tests.data.mutated_data import Input


class Escaped(Exception):
    """What must not happen did."""


def judge(found: Input) -> None:
    """Opens and reads all of an input. Raises Escaped, or what escaped."""
    report = SkipReport()
    source = open_source(found.config, report)
    read: dict[str, np.ndarray] = {}
    for index in range(len(source)):
        example = _read(source, index, report)
        if example is not None:
            read.setdefault(example.captions[0], example.image)
    for name, grey in found.expected.items():
        image = read.get(f"caption {name}")
        if image is None or not (image == grey).all():
            raise Escaped(f"sound sample {name} was {'lost' if image is None else 'changed'}")
    sample_captions(source, len(source), 0)
    shown = [*report.summary(), *json.loads(json.dumps(report.to_json()))["files"]]
    if not all(line.isprintable() for line in shown):
        raise Escaped("control characters in the report")


def _read(source: Source, index: int, report: SkipReport) -> Example | None:
    try:
        example = source[index]
        if source.captions(index) != example.captions or not all(example.captions):
            raise Escaped("captions of a sample differ")
        return example
    except DamagedSample as damaged:
        if not str(damaged).isprintable():
            raise Escaped("control characters in what is said of a sample") from damaged
        report.skip(damaged.reason, damaged.key, index)
        return None

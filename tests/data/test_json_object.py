"""JSON of strangers: what json.loads reads as an object, unless it is nested too deeply."""

import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contextdiff_jax.data.json_object import parse_object
from tests.data.mutated_data import strange_row

VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES))
@example({"brackets in a string": '[{"' * 500})
@example({"neighbours": [[] for _ in range(500)]})
def test_reads_what_json_wrote(row):
    assert parse_object(json.dumps(row).encode()) == row


@given(st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_agrees_with_json_on_anything(data):
    try:
        expected = json.loads(data)
    except ValueError:
        expected = None
    found = parse_object(data)
    assert found == (expected if isinstance(expected, dict) else None)


@pytest.mark.parametrize("opened, closed", [("[", "]"), ('{"a":', "}")])
def test_the_limit_on_depth_does_not_depend_on_who_calls(opened, closed):
    def row(levels: int) -> bytes:
        return ('{"a":' + opened * (levels - 1) + "1" + closed * (levels - 1) + "}").encode()

    def deeply(frames: int, data: bytes):
        return deeply(frames - 1, data) if frames else parse_object(data)

    assert parse_object(row(100)) is not None
    assert deeply(300, row(100)) is not None
    for levels in (101, 985, 100_000):
        assert parse_object(row(levels)) is None
        assert parse_object(row(levels)[: 5 * levels]) is None  # never closed


def test_infinite_numbers_are_read_and_not_stumbled_on():
    row = parse_object(b'{"a": 1e999, "b": -Infinity, "c": NaN}')
    assert row["a"] == float("inf") == -row["b"] and row["c"] != row["c"]


def test_a_string_without_end_is_gone_over_once(monkeypatch):
    """Escaped quotes in a string without end: from each of them to the end would take hours."""
    seen = []
    module = "contextdiff_jax.data.json_object._STRING_OR_BRACKET"
    pattern = parse_object.__globals__["_STRING_OR_BRACKET"]

    class Counting:
        def finditer(self, data):
            for found in pattern.finditer(data):
                seen.append(found.span())
                yield found

    monkeypatch.setattr(module, Counting())
    data = b'{"a": [' + b"[]," * 101 + b'"' + b'\\"' * 1000
    assert parse_object(data) is None
    assert seen[-1] == (len(data) - 2001, len(data))  # all the rest is one string


@pytest.mark.parametrize("seed", range(50))
def test_strange_rows_are_rows_or_none(seed):
    row = parse_object(strange_row(random.Random(seed), caption="c", other=1))
    assert row is None or isinstance(row, dict)

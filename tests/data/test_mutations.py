"""Whatever is done to tars, pictures and JSON, reading goes on, and sound samples come whole."""

import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import mutated_data, mutations


@pytest.mark.timeout(600)
@pytest.mark.parametrize("make", dict.fromkeys(mutated_data.MAKERS), ids=lambda make: make.__name__)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def test_no_input_escapes(make, rng):
    with tempfile.TemporaryDirectory() as folder:
        mutations.judge(make(pathlib.Path(folder), rng))

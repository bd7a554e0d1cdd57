"""Whatever is done to tars, pictures and JSON, reading goes on, and sound samples come whole."""

import pathlib
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data import mutated_data
from tests.data.judged_data import Escaped, judge


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
        judge(make(pathlib.Path(folder), rng))


def test_a_lost_sample_escapes(tmp_path):
    found = mutated_data.shards(
        tmp_path, mutated_data.tar(mutated_data.sample("a", 100)), {"a": 101}
    )
    with pytest.raises(Escaped, match="sound sample a was changed"):
        judge(found)
    found.expected = {"b": 100}
    with pytest.raises(Escaped, match="sound sample b was lost"):
        judge(found)

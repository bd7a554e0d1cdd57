"""all_finite against numpy's own, which is slower."""

import ml_dtypes
import numpy as np
import pytest

from contextdiff_jax.system.finite import all_finite

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.longdouble, ">f4", ">f8"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_says_what_numpy_says(dtype):
    size = 2**17 + 3  # more than one chunk
    array = np.linspace(-60_000, 60_000, size).astype(dtype)
    array[0] = 0
    assert all_finite(array) and all_finite(array[:0]) and all_finite(array.reshape(-1, 1)[::2].T)
    for value in (np.nan, np.inf, -np.inf):
        for place in (1, size - 1):
            spoilt = array.copy()
            spoilt[place] = value
            assert not np.isfinite(spoilt).all() and not all_finite(spoilt)


def test_the_largest_and_the_smallest_numbers_are_finite():
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        info = ml_dtypes.finfo(dtype)
        values = [info.max, info.min, info.tiny, info.smallest_subnormal, -0.0]
        assert all_finite(np.array(values, dtype))
    assert all_finite(np.array(1.0, np.float32)) and not all_finite(np.array(np.nan, np.float32))

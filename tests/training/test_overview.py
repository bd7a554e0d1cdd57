"""The summary of a run's parameters: sums and shares counted by hand."""

import numpy as np

from contextdiff_jax.training import overview


def test_a_line_for_each_network_with_its_largest_parts():
    params = {
        "denoiser": {
            "a": {"kernel": np.zeros((2, 5))},
            "b": {"kernel": np.zeros((7, 10)), "bias": np.zeros(10)},
            "c": {"scale": np.zeros(4)},
            "d": {"scale": np.zeros(6)},
        },
        "scale": np.zeros(()),
    }
    denoiser, scale = overview.summary(params)
    assert " ".join(denoiser.split()) == "denoiser 100 parameters: b 80 %, a 10 %, d 6 %"
    assert " ".join(scale.split()) == "scale 1 parameters"


def test_the_table_has_every_parameter():
    params = {"denoiser": {f"block_{i}": {"kernel": np.zeros((i + 1, 3))} for i in range(30)}}
    text = overview.table(params)
    assert all(f"denoiser/block_{i}/kernel" in text for i in range(30))

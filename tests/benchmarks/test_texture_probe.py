"""The linear probe of CLIP's tokens: what is there is found, what is not is chance."""

import numpy as np

from benchmarks import texture_probe


def test_a_probe_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 900)
    told = rng.normal(size=(900, 12))
    told[np.arange(900), labels] += 4
    untold = rng.normal(size=(900, 12))
    for rows, least, most in ((told, 0.95, 1.0), (untold, 0.0, 0.4)):
        share = texture_probe.share_right(rows[:600], labels[:600], rows[600:], labels[600:])
        assert least <= share <= most


def test_every_reading_is_probed(clip_folder):
    found = texture_probe.main([f"--encoder={clip_folder}", "--train=40", "--test=12"])
    assert len(found) == 6
    assert all(0 <= share <= 1 for shares in found.values() for share in shares.values())
    assert found["pixels of 1"] != found["pixels of 3"]

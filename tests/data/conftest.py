"""Sources that data tests read."""

import numpy as np
import pytest


class ListSource:
    """Samples that say their own number; `damaged` maps indices to reasons."""

    name = "list"

    def __init__(self, length: int, damaged=None, captions: int = 1):
        self.length = length
        self.damaged = damaged or {}
        self.number_of_captions = captions

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        from contextdiff_jax.data.example import DamagedSample, Example

        if index in self.damaged:
            raise DamagedSample(f"s{index}", self.damaged[index])
        image = np.full((8, 8, 3), index % 256, np.uint8)
        image[:, 0] = 255
        notes = ("mended",) if index % 5 == 0 else ()
        return Example(image, self.captions(index), f"s{index}", notes)

    def captions(self, index: int):
        return tuple(f"{index}.{i}" for i in range(self.number_of_captions))


@pytest.fixture(scope="session")
def list_source():
    return ListSource

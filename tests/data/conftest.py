"""Makes the small files the data tests read."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture_bytes():
    """Returns a function: a flat picture of this grey value, encoded."""

    def make(value: int, size=(24, 24), kind: str = "PNG", **options) -> bytes:
        return encode(Image.new("RGB", size, (value, value, value)), kind, **options)

    return make


@pytest.fixture(scope="session")
def write_tar():
    """Returns a function that writes a tar of (name, bytes) members."""

    def write(path, members, **options) -> None:
        with tarfile.open(path, "w", **options) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    return write


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory, picture_bytes, write_tar):
    """A folder of two shards with 5 + 4 samples; the grey value of sample i is 20 i."""
    folder = tmp_path_factory.mktemp("tiny_shards")
    for shard, numbers in enumerate((range(5), range(5, 9))):
        members = []
        for i in numbers:
            row = {"title": f"title {i}", "original_width": 100 * i, "original_height": 900}
            members += [
                (f"{i:05d}.png", picture_bytes(20 * i)),
                (f"{i:05d}.txt", f"sample {i}".encode()),
                (f"{i:05d}.json", json.dumps(row).encode()),
            ]
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


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

"""Latents of pictures computed once, on disk: what a first stage encodes a data set to.

The files are those of embedding_shards.py. A record has the picture's entry and, where the run
mirrors pictures, one of the mirrored picture: its latents are not the latents mirrored. An entry
holds the mean, and the logarithm of the variance where the stage's encoder gives a Gaussian, from
which training draws anew at each step. They are the stage's own latents, not normalized.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging
from etils import epath

from contextdiff_jax.data import embedding_shards as shards
from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import DamagedSample, DataError, Example, Source
from contextdiff_jax.system.scalars import read_scalar, shown

LATENT = "latent"  # the name of the array in a batch
PLAIN, MIRRORED = b"", b"mirrored"  # keys of a record's entries

_MEAN = "mean"
_LOG_VARIANCE = "log_variance"
_OPEN_SHARDS = 256
_MOST_SIDE = 2**14
# Of the data's section, what decides how a sample becomes the picture that is encoded.
PREPARED_BY = ("resolution", "resize_mode")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentMetadata(shards.Sharded):
    """What a folder of latents holds.

    stage: identity of the first stage's weights. shape: (h, w, channels) of the latents. gaussian:
    whether there are variances. mirrored: whether there is the second set. preparation: how
    pictures became square. mean, std: of each channel, over all pictures, () until all are there.
    """

    what: ClassVar[str] = "latents"

    stage: str
    shape: tuple[int, ...]
    gaussian: bool
    mirrored: bool
    preparation: dict[str, Any]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, content: dict[str, Any]) -> "LatentMetadata":
        """Returns what the content of metadata.json says; it may be a stranger's."""
        lists = {key: tuple(content.pop(key)) for key in ("shape", "mean", "std")}
        return cls(**lists, **content)

    def check(self) -> None:
        """Raises ValueError naming what `write` never wrote."""
        super().check()
        read_scalar(str, self.stage, "stage")
        for key in ("gaussian", "mirrored"):
            read_scalar(bool, getattr(self, key), key)
        if len(self.shape) != 3:
            raise ValueError(f"shape = {self.shape}: must be (h, w, channels)")
        for size in self.shape:
            shards.check_size("shape", size, _MOST_SIDE)
        if not isinstance(self.preparation, dict):
            raise ValueError(f"preparation = {shown(self.preparation)}: must be an object")
        for key in ("mean", "std"):
            for value in getattr(self, key):
                read_scalar(float, value, key)

    @property
    def parts(self) -> tuple[str, ...]:
        """The arrays of an entry."""
        return (_MEAN, _LOG_VARIANCE) if self.gaussian else (_MEAN,)


def preparation(data: DataConfig) -> dict[str, Any]:
    """Returns how samples become pictures, as far as latents depend on it."""
    return {key: getattr(data, key) for key in PREPARED_BY}


def pack(entries: Mapping[bytes, Sequence[np.ndarray]]) -> bytes:
    """Returns the record of one sample: arrays (h, w, channels) of each entry, mean first."""
    names = (_MEAN, _LOG_VARIANCE)
    return shards.pack_entries(
        {
            key: {
                name: np.ascontiguousarray(array).tobytes()
                for name, array in zip(names, arrays, strict=False)
            }
            for key, arrays in entries.items()
        }
    )


class Latents:
    """The latents of a data set's pictures, by sample; safe to read from several threads.

    Raises DataError if the folder holds no finished latents.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.metadata = shards.finished_metadata(self.folder, LatentMetadata)
        self._dtype = shards.DTYPES[self.metadata.dtype]
        self._reader = functools.lru_cache(_OPEN_SHARDS)(shards.open_records)

    def __reduce__(self) -> tuple:
        return Latents, (self.folder,)

    def read(self, index: int) -> dict[bytes, np.ndarray]:
        """Returns, by PLAIN and perhaps MIRRORED, the latents (h, w, C) of sample `index`.

        C is the channels of the mean, and as many more of the logarithm of the variance where there
        are some. Empty for a sample that was damaged. Raises DataError for damaged files.
        """
        shard, place = divmod(index, self.metadata.shard_size)
        path = self.folder / self.metadata.shard_name(shard)
        entries = shards.read_entries(self._reader(path), path, place)
        return {key: self._array(entry, path, place) for key, entry in entries.items()}

    def _array(self, entry: Mapping[str, bytes], path: epath.Path, place: int) -> np.ndarray:
        shape = self.metadata.shape
        try:
            arrays = [
                np.frombuffer(entry[part], self._dtype).reshape(shape)
                for part in self.metadata.parts
            ]
        except (TypeError, KeyError, ValueError) as error:
            raise DataError(f"{path} holds damaged latents at record {place}: {error}") from error
        return np.concatenate(arrays, axis=-1)


class LatentSource:
    """A source's captions with stored latents in the place of its pictures, which are not decoded.

    Its examples have pictures of no pixels and the map "latent". Raises DataError unless the
    latents are of this source, prepared as `data` says, with the mirrored ones where it mirrors.
    """

    def __init__(self, source: Source, latents: Latents, data: DataConfig):
        self.name = source.name
        self._source, self._latents, self._mirrors = source, latents, data.flip
        ours, folder = latents.metadata, latents.folder
        if len(source) != ours.samples:
            raise DataError(
                f"the latents in {folder} are of {ours.samples} samples ({ours.source}), the run "
                f"reads {len(source)} ({source.name})"
            )
        if source.name != ours.source:
            logging.warning(
                "the latents in %s are of %s, the run reads %s: they must be the same samples in "
                "the same order, which is not checked",
                *(folder, ours.source, source.name),
            )
        for key, value in preparation(data).items():
            if ours.preparation.get(key) != value:
                raise DataError(
                    f"the latents in {folder} were made with data.{key} = "
                    f"{ours.preparation.get(key)!r}, the run has {value!r}"
                )
        if data.flip and not ours.mirrored:
            raise DataError(
                f"the latents in {folder} hold no mirrored pictures, which data.flip = True "
                "needs: make them with data.flip=True"
            )

    @property
    def dtype(self) -> str:
        """Of the stored latents, by its name."""
        return self._latents.metadata.dtype

    def __len__(self) -> int:
        return len(self._source)

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions, or raises DamagedSample."""
        return self._source.captions(index)

    def __getitem__(self, index: int) -> Example:
        captions, found = self._source.captions(index), self._latents.read(index)
        if PLAIN not in found or (self._mirrors and MIRRORED not in found):
            raise DamagedSample(f"sample {index}", "has no latents: its picture was damaged")
        image = np.zeros((0, 0, 3), np.uint8)
        mirrored = {LATENT: found[MIRRORED]} if self._mirrors else None
        maps = {LATENT: found[PLAIN]}
        return Example(image, captions, f"sample {index}", maps=maps, mirrored_maps=mirrored)

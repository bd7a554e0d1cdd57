"""A captioned image, what makes one unusable, and the count of those."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging

from contextdiff_jax.system.printable import printable


class DataError(ValueError):
    """The data cannot be used at all: wrong path, nothing usable left, unknown name."""


class DamagedSample(Exception):
    """One sample cannot be used. `key` names it, `reason` is one of a small set of phrases."""

    def __init__(self, key: str, reason: str):
        self.key = printable(key)
        self.reason = reason
        super().__init__(f"{self.key}: {reason}")


@contextlib.contextmanager
def sample_at_fault(key: str) -> Iterator[None]:
    """Within, which works on the bytes of one sample alone, any error becomes a DamagedSample.

    Its reason names the error's type. A lack of memory is not the sample's fault. Reading stays
    outside: that a disk or a bucket fails is not, either.
    """
    try:
        yield
    except (DamagedSample, MemoryError):
        raise
    except Exception as error:  # its contents are a stranger's: no list of errors is complete
        logging.debug("sample %s", printable(key), exc_info=True)
        raise DamagedSample(key, f"cannot be decoded ({type(error).__name__})") from error


@dataclasses.dataclass(frozen=True)
class Example:
    """A usable sample.

    image: uint8 (R, R, 3), sRGB. captions: at least one, none of them blank. key: its name in
    the source. notes: what had to be repaired to use it, one phrase each.
    maps: what else lies over the picture, (R, R, ...) each, by name; it is mirrored with it, and
    its name is that of its array in a batch. The same names in every sample of a source.
    boxes: what is where in it (data/boxes.py), () for nothing; None where the source does not say.
    mirrored_captions, mirrored_maps: those of the mirrored picture, one caption for each; () and
    None where captions are the same and maps are mirrored.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    key: str
    notes: tuple[str, ...] = ()
    maps: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    boxes: tuple[Any, ...] | None = None
    mirrored_captions: tuple[str, ...] = ()
    mirrored_maps: Mapping[str, np.ndarray] | None = None

    def mirrored(self) -> "Example":
        """Returns the sample as a mirror shows it, without boxes, which are the picture's own."""
        maps = self.mirrored_maps
        if maps is None:
            maps = {name: array[:, ::-1] for name, array in self.maps.items()}
        captions = self.mirrored_captions or self.captions
        image = self.image[:, ::-1]
        return dataclasses.replace(self, image=image, captions=captions, maps=maps, boxes=None)


class Source(Protocol):
    """Random access to captioned images; safe to read from several threads."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Returns sample `index`, or raises DamagedSample."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone, without decoding the image, or raises DamagedSample."""
        ...


class SkipReport:
    """Counts what was skipped or repaired, by reason, with the first few names of each.

    Three sections: `skipped` samples, `repaired` samples (used, after a repair), damaged `files`
    (a tar that ends early, a line that is no JSON). A sample given with its index counts once,
    however often the stream comes back to it. In a run of several processes each counts what it
    read itself. Thread-safe.
    """

    NAMES = 5  # kept per reason

    def __init__(self) -> None:
        self.skipped: dict[str, _Tally] = {}
        self.repaired: dict[str, _Tally] = {}
        self.files: dict[str, _Tally] = {}
        self._seen = {"skipped": _IndexSet(), "repaired": _IndexSet()}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return SkipReport.from_json, (self.to_json(),)

    def skip(self, reason: str, name: str, index: int | None = None) -> None:
        """Counts a sample that is not used."""
        self._count("skipped", (reason,), name, index)

    def repair(self, notes: tuple[str, ...], name: str, index: int | None = None) -> None:
        """Counts a sample that is used after the repairs `notes`, once under each."""
        self._count("repaired", notes, name, index)

    def damaged_file(self, reason: str, name: str) -> None:
        """Counts a file that could not be read to its end."""
        self._count("files", (reason,), name, None)

    def _count(self, section: str, reasons: tuple[str, ...], name: str, index: int | None) -> None:
        name = printable(name)
        with self._lock:
            if index is not None and not self._seen[section].add(index):
                return
            for reason in reasons:
                getattr(self, section).setdefault(reason, _Tally()).add(name, self.NAMES)

    def merge(self, other: "SkipReport") -> None:
        """Adds another report's counts to this one's (samples are not matched by index)."""
        with self._lock:
            for section in ("skipped", "repaired", "files"):
                for reason, tally in getattr(other, section).items():
                    mine = getattr(self, section).setdefault(reason, _Tally())
                    mine.count += tally.count
                    mine.names = (mine.names + tally.names)[: self.NAMES]

    @property
    def total(self) -> int:
        """Number of samples skipped."""
        return sum(tally.count for tally in self.skipped.values())

    def counts(self) -> dict[str, int]:
        """Returns the number of samples skipped by reason."""
        return {reason: tally.count for reason, tally in self.skipped.items()}

    def summary(self) -> list[str]:
        """Returns lines for a log: the total, then one line per reason, the commonest first."""
        lines = [f"{self.total} samples skipped"]
        for verb, section in (
            ("skipped", self.skipped),
            ("repaired", self.repaired),
            ("damaged files", self.files),
        ):
            for reason, tally in sorted(section.items(), key=lambda item: -item[1].count):
                more = ", ..." if tally.count > len(tally.names) else ""
                lines.append(f"{verb}: {tally.count} x {reason} ({', '.join(tally.names)}{more})")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Returns the report as what json can write."""
        sections = {
            section: {
                reason: {"count": tally.count, "names": list(tally.names)}
                for reason, tally in getattr(self, section).items()
            }
            for section in ("skipped", "repaired", "files")
        }
        return {"total_skipped": self.total, **sections}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SkipReport":
        """Reads `to_json` back. It no longer knows which samples it counted.

        A copy made by pickling is such a one. What is no report raises an error of some type.
        """
        report = cls()
        for section in ("skipped", "repaired", "files"):
            getattr(report, section).update(
                {
                    printable(reason): _Tally(
                        int(tally["count"]), tuple(map(printable, tally["names"]))
                    )
                    for reason, tally in value[section].items()
                }
            )
        return report


@dataclasses.dataclass
class _Tally:
    count: int = 0
    names: tuple[str, ...] = ()

    def add(self, name: str, most: int) -> None:
        self.count += 1
        if len(self.names) < most:
            self.names += (name,)


class _IndexSet:
    """A set of sample indices in pages of bits: 50 MB for 400 M samples where all are members."""

    PAGE = 1 << 15

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = collections.defaultdict(
            lambda: bytearray(self.PAGE // 8)
        )

    def add(self, index: int) -> bool:
        """Adds the index; returns whether it is new."""
        page, bit = self._pages[index // self.PAGE], index % self.PAGE
        known = page[bit // 8] >> (bit % 8) & 1
        page[bit // 8] |= 1 << (bit % 8)
        return not known

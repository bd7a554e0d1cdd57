"""A folder of the same things in several styles, for in-context generation.

Each picture comes with a query, the same thing in another style, and with context, other things in
its own style. Which ones is a pure function of its place in the folder.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.context_scenes import opaque
from contextdiff_jax.data.example import DamagedSample, DataError, Example, SkipReport
from contextdiff_jax.data.folder import FolderSource

NO_ITEM = "its row names no item or style"
ALONE = "its item is in one style only"
FEW = "too few other items in its style"
SHAPE = "its query is not as wide for its height: it would lie elsewhere"
_SPLITS = ("train", "test")
_ROUNDING = 0.02  # of a picture's sides, where it was resized
_DRAWN = 0x57A1ED  # a stream of its own


class StyledFolderSource:
    """Pictures of a folder whose item exists in another style too; see StylesConfig.

    Their maps are "query", uint8 (R, R, 4), and "context", uint8 (R, R, styles.context, 4): RGBA,
    where everything is opaque. Context is of the picture's own split. A picture whose query or
    context is damaged, or whose query is of other proportions, is a damaged sample itself. Raises
    DataError as FolderSource does, for another split than "train" and "test", and where no picture
    of the split has both.
    """

    def __init__(self, config: DataConfig, report: SkipReport):
        styles = config.styles
        if config.split not in _SPLITS:
            raise DataError(f"split {config.split!r}: must be one of {', '.join(_SPLITS)}")
        whole = dataclasses.replace(config, split=DataConfig.split)
        self._folder = FolderSource(whole, report, (styles.item, styles.style, "file_name"))
        self.name = f"{self._folder.name} in context, {config.split}"
        self._config = config
        self._items: dict[str, list[int]] = collections.defaultdict(list)
        self._styles: dict[str, list[int]] = collections.defaultdict(list)
        rows = [place for place in range(len(self._folder)) if self._is_of_split(place, report)]
        for place in rows:
            item, style, _ = self._folder.values[place]
            self._items[item].append(place)
            self._styles[style].append(place)
        self._rows = [place for place in rows if self._usable(place, report)]
        if not self._rows:
            raise DataError(f"no usable sample in {self.name}: {'; '.join(report.summary())}")

    def _is_of_split(self, place: int, report: SkipReport) -> bool:
        item, style, name = self._folder.values[place]
        if not all(isinstance(value, str) and value.strip() for value in (item, style)):
            report.skip(NO_ITEM, name)
            return False
        digest = hashlib.sha256(item.encode(errors="replace")).digest()
        held_out = int.from_bytes(digest[:8], "big") % self._config.styles.held_out == 0
        return held_out == (self._config.split == "test")

    def _usable(self, place: int, report: SkipReport) -> bool:
        others = len(self._styles[self._style(place)]) - self._own(place)
        reason = ALONE if not self._queries(place) else FEW if others < self._count else ""
        if reason:
            report.skip(reason, self._folder.values[place][2])
        return not reason

    @property
    def _count(self) -> int:
        return self._config.styles.context

    def _item(self, place: int) -> str:
        return self._folder.values[place][0]

    def _style(self, place: int) -> str:
        return self._folder.values[place][1]

    def _queries(self, place: int) -> list[int]:
        """Returns the rows of the same item in other styles."""
        rows = self._items[self._item(place)]
        return [row for row in rows if self._style(row) != self._style(place)]

    def _own(self, place: int) -> int:
        """Returns how many rows have the same item and style."""
        return len(self._items[self._item(place)]) - len(self._queries(place))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        target, size = self._folder.with_size(self._rows[index])
        query, context = self.chosen(index)
        [(picture, other)] = self._read([query], target.key)
        if self._config.resize_mode != "stretch" and not _same_shape(size, other):
            raise DamagedSample(target.key, SHAPE)
        shown = [picture for picture, _ in self._read(context, target.key)]
        maps = {"query": picture, "context": np.stack(shown, axis=2)}
        return dataclasses.replace(target, maps=maps)

    def chosen(self, index: int) -> tuple[int, list[int]]:
        """Returns the rows in the folder of a sample's query and of its context."""
        place = self._rows[index]
        rng = np.random.default_rng([_DRAWN, index])
        queries, style = self._queries(place), self._styles[self._style(place)]
        # Of so many that enough are left without the item's own.
        drawn = rng.choice(len(style), self._count + self._own(place), replace=False)
        found = [style[number] for number in drawn]
        others = [row for row in found if self._item(row) != self._item(place)]
        return queries[int(rng.integers(len(queries)))], others[: self._count]

    def styles(self, index: int) -> tuple[str, str]:
        """Returns the styles of a sample's query and of the sample itself."""
        return self._style(self.chosen(index)[0]), self._style(self._rows[index])

    def row(self, index: int) -> int:
        """Returns the row in the folder of a sample."""
        return self._rows[index]

    def _read(self, rows: Sequence[int], key: str) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Returns RGBA pictures, each with width and height of the whole one."""
        pictures = []
        for row in rows:
            try:
                example, size = self._folder.with_size(row)
                pictures.append((opaque(example.image), size))
            except DamagedSample as error:
                raise DamagedSample(key, f"its query or context: {error.reason}") from error
        return pictures

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns the captions alone."""
        return self._folder.captions(self._rows[index])


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two pictures (width, height) are of the same proportions."""
    first, second = size[0] * other[1], size[1] * other[0]
    return abs(first - second) <= _ROUNDING * max(first, second)

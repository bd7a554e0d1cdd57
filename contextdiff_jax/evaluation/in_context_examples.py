"""Examples in context as files: what requests name, and what their pictures are compared with."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath

from contextdiff_jax.conditions.requests import Request
from contextdiff_jax.data.decode import open_image
from contextdiff_jax.data.example import Example, SkipReport, Source
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.parallel import distributed
from contextdiff_jax.spaces.pictures import write_png

_AT_A_TIME = 64  # read


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of a source, each with its prompt, its context and its query.

    places: theirs in the source. requests: for all three conditions. targets: files of the true
    pictures; what a picture is of, its query shows in another style.
    """

    places: tuple[int, ...]
    requests: tuple[Request, ...]
    targets: tuple[epath.Path, ...]

    def __len__(self) -> int:
        return len(self.requests)

    def asking(self, names: Sequence[str], most: int | None = None) -> list[Request]:
        """Returns the requests for these conditions alone, and at most so many of the context."""
        found = []
        for request in self.requests:
            asked = {name: value if name in names else None for name, value in request.items()}
            if asked["context"] is not None:
                asked["context"] = asked["context"][:most]
            found.append(asked)
        return found

    def true(self, chosen: Iterable[int]) -> np.ndarray:
        """Returns the true pictures of some, (n, H, W, 3) uint8."""
        return _read(self.targets[number] for number in chosen)

    def queries(self, chosen: Iterable[int]) -> np.ndarray:
        """Returns the queries of some, likewise."""
        return _read(self.requests[number]["query"] for number in chosen)


def written_examples(
    source: Source, places: Sequence[int], folder: epath.Path, report: SkipReport
) -> Examples:
    """Writes the pictures of these places to a folder; damaged examples are left out, and counted.

    Raises ValueError where none is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        (place, *_written(folder, place, example))
        for batch in one_pass(source, places, _AT_A_TIME, report)
        for place, example in batch
    ]
    distributed.wait_for_all("pictures of context")
    if not found:
        raise ValueError(f"no usable sample in {source.name}: {'; '.join(report.summary())}")
    return Examples(*zip(*found, strict=True))


def _written(folder: epath.Path, place: int, example: Example) -> tuple[Request, epath.Path]:
    context = np.moveaxis(example.maps["context"], 2, 0)
    names = ["target", "query", *(f"context_{number}" for number in range(len(context)))]
    paths = [folder / f"{place:06d}_{name}.png" for name in names]
    if distributed.is_main():
        pictures = (example.image, example.maps["query"], *context)
        for path, picture in zip(paths, pictures, strict=True):
            write_png(path, picture[..., :3])
    target, query, *shown = paths
    caption = example.captions[0] if example.captions else ""
    request = {"text": caption or None, "context": [*map(str, shown)], "query": str(query)}
    return request, target


def _read(paths: Iterable[epath.PathLike]) -> np.ndarray:
    pictures = []
    for path in paths:
        with epath.Path(path).open("rb") as file:
            pictures.append(np.asarray(open_image(file, ("PNG",)).convert("RGB")))
    return np.stack(pictures)

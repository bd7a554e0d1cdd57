"""Held-out examples of a folder in several styles: what in-context measures draw and compare with.

A direction is (the query's style, the style that is asked for), of a folder of photographs with
their maps such as ("edges", "photo").
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from contextdiff_jax.data.config import DataConfig
from contextdiff_jax.data.example import SkipReport
from contextdiff_jax.data.styled_folder import StyledFolderSource
from contextdiff_jax.evaluation.evaluation import Evaluation
from contextdiff_jax.evaluation.in_context_examples import Examples, written_examples
from contextdiff_jax.generation.generate import Pictures

Images = Callable[[Sequence[int]], np.ndarray]
"""Returns the pictures of some examples, (n, H, W, 3) uint8."""

COUNT = 256  # examples by default
BOTH, CONTEXT, PROMPT = "prompt and context", "context", "prompt"
_NAMES = {BOTH: ("text", "context", "query"), CONTEXT: ("context", "query")}
_NAMES |= {PROMPT: ("text", "query")}


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The data of a measure, opened; see `held_out`."""

    data: DataConfig
    source: StyledFolderSource
    report: SkipReport
    places: tuple[int, ...]

    def written(self, evaluation: Evaluation) -> tuple[Examples, list[tuple[str, str]]]:
        """Writes the examples to OUTPUT/held_out, and returns them with their directions."""
        folder = evaluation.output / "held_out"
        examples = written_examples(self.source, self.places, folder, self.report)
        return examples, [self.source.styles(place) for place in examples.places]

    def protocol(self, evaluation: Evaluation, examples: Examples) -> dict[str, Any]:
        """Returns what the pictures and what they are compared with depend on."""
        task = evaluation.cascade.stages[-1].task
        return evaluation.protocol() | {
            "conditions": task.protocol(),
            "data": f"{self.data.path}, split {self.data.split}",
            "held out": f"one in {self.data.styles.held_out} of {self.data.styles.item}",
            "count": len(examples),
            "left out": len(self.places) - len(examples),
        }


def held_out(evaluation: Evaluation, what: str) -> HeldOut:
    """Returns the held-out data of the measured stage, or what --data says; no picture is read.

    Raises ValueError naming the measure where they are no folder in several styles.
    """
    data = evaluation.data({"split": "test"})
    if data.source != "folder" or not data.context:
        raise ValueError(
            f"--what={what}: only exports trained on a folder with styles.context above 0 can be "
            "measured this way"
        )
    report = SkipReport()
    source = StyledFolderSource(data, report)
    count = min(evaluation.settings.count or COUNT, len(source))
    order = np.random.default_rng(evaluation.settings.caption_seed).permutation(len(source))
    return HeldOut(data, source, report, tuple(sorted(order[:count].tolist())))


def drawn(
    evaluation: Evaluation, examples: Examples, given: str, most: int | None = None
) -> tuple[str, Pictures]:
    """Draws a picture per example; measures of one call share them.

    given: what of the conditions beside the query; most: pictures of context, None for all.
    """
    folder = f"held_out_{given.replace(' ', '_')}{'' if most is None else f'_{most}'}"
    return folder, evaluation.draw_requests(examples.asking(_NAMES[given], most), folder)


def images_of(pictures: Pictures, stage: str) -> Images:
    """Returns what reads drawn pictures by their numbers."""
    return lambda chosen: pictures.read(stage, chosen)


def parts(places: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields the places, `size` at a time."""
    for start in range(0, len(places), size):
        yield list(places[start : start + size])

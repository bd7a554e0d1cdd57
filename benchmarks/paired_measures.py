"""What `paired_runs` measures of a finished training: each drawing once, by all that was asked for.

The measurement is one of contextdiff_jax.evaluation, so that a training has one report.html with
the pictures of every drawing. They are of the same prompts and noise in all variants, and the real
pictures that they are compared with are encoded once, by a seed's own CLIP once a seed.
"""

import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from contextdiff_jax.evaluation import prompt_following
from contextdiff_jax.evaluation.evaluation import Evaluation, Plan
from contextdiff_jax.evaluation.galleries import sample_gallery
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.evaluation.scores import Scorer
from contextdiff_jax.generation.cascade import Cascade
from contextdiff_jax.generation.generate import Pictures

DRAWN = ("scenes", "fid")  # of drawn pictures: what guidance and calls change
DRAWINGS = "drawings"  # the measurement's name in results
RATE = "images a second"
_SECONDS = "seconds.json"  # in a drawing's folder: what each batch after the first took


@dataclasses.dataclass(frozen=True)
class Drawing:
    """suffix: what follows a figure's name, "" of the run's own sampler. settings: of --sampler."""

    suffix: str
    folder: str
    settings: tuple[str, ...] = ()


def plan_drawings(drawings: tuple[Drawing, ...], what: tuple[str, ...], kept: epath.Path) -> Plan:
    """Returns the plan that draws and measures each drawing.

    what: some of DRAWN. kept: the folder for features of the real pictures.
    """

    def plan(evaluation: Evaluation) -> Callable[[], Result]:
        data = evaluation.data()
        if "scenes" in what and data.source != "scenes":
            raise ValueError(f"what = 'scenes': only rendered scenes, not {data.source!r}, have it")
        scorer = Scorer(evaluation, {}, None) if "fid" in what else None
        return lambda: _measured(evaluation, scorer, drawings, what, kept)

    return plan


def _measured(
    evaluation: Evaluation,
    scorer: Scorer | None,
    drawings: tuple[Drawing, ...],
    what: tuple[str, ...],
    kept: epath.Path,
) -> Result:
    data = evaluation.data()
    captions = scorer.captions if scorer else evaluation.captions(data, None)
    real = scorer.reference.features(kept, evaluation.watch) if scorer else None
    found, galleries = {}, []
    for drawing in drawings:
        cascade = evaluation.cascade.with_sampler(drawing.settings)
        pictures, rate = drawn(evaluation, captions, drawing.folder, cascade)
        figures = {} if rate is None else {RATE: rate}
        if scorer is not None:
            scores = scorer.score(pictures, real)
            figures |= scores.figures(scorer.networks.frechet.distance_name)
        if "scenes" in what:
            figures |= _agreement(evaluation, pictures, captions, chance=not drawing.suffix)
        found[drawing] = figures
        title = drawing.suffix.strip(", ") or "the run's own sampler"
        galleries.append(sample_gallery(pictures, evaluation.stage, drawing.folder, title))
    return Result(
        title="Drawings",
        summary="The same prompts and noise by several samplers: distance to real pictures, and "
        "agreement with the prompts.",
        values={
            f"{n}{drawing.suffix}": v for drawing, row in found.items() for n, v in row.items()
        },
        protocol={
            **(scorer or evaluation).protocol(),
            "split": data.split,
            "count": len(captions),
        },
        tables=(_table(found),),
        galleries=tuple(galleries),
        warnings=scorer.warnings(scores, real) if scorer else (),
    )


def _table(found: Mapping[Drawing, Mapping[str, float]]) -> Table:
    names = tuple(dict.fromkeys(name for row in found.values() for name in row))
    rows = ((each.folder, *(row.get(name) for name in names)) for each, row in found.items())
    return Table(DRAWINGS, ("drawing", *names), tuple(rows))


def _agreement(
    evaluation: Evaluation, pictures: Pictures, captions: tuple[str, ...], *, chance: bool
) -> dict[str, float]:
    """Returns the shares of pictures that show what their prompts say; chance: shuffled, too.

    Where some but not all prompts have two objects, also the share of these that is right in all.
    """
    shown = pictures.read(evaluation.stage, range(len(captions)))
    by_objects = prompt_following.by_objects(shown, captions)
    shares = by_objects["prompts"].shares
    found = {"colour and shape": shares["colour_and_shape"]}
    found |= {name: shares[name] for name in prompt_following.ASPECTS}
    if "two_objects" in by_objects:
        found["all, of two objects"] = by_objects["two_objects"].shares["all"]
    if chance:
        shuffled = prompt_following.agreement(shown, prompt_following.shuffled(captions))
        found["colour and shape, shuffled"] = shuffled.shares["colour_and_shape"]
    return found


def drawn(
    evaluation: Evaluation, captions: tuple[str, ...], folder: str, cascade: Cascade
) -> tuple[Pictures, float | None]:
    """Returns the drawing, and how many pictures a second were drawn.

    It is of the median batch; the first one, which compiles, is left out. None without another.
    """
    kept = evaluation.output / folder / _SECONDS
    seconds: list[float] = []
    pictures = evaluation.draw(captions, folder, _timed(cascade, seconds))
    if seconds:
        kept.write_text(json.dumps(seconds[1:]))
    seconds = json.loads(kept.read_text()) if kept.exists() else []
    size = cascade.whole_batch(evaluation.settings.batch_size, len(captions))
    return pictures, size / statistics.median(seconds) if seconds else None


def _timed(cascade: Cascade, seconds: list[float]) -> Cascade:
    """Returns the cascade; how long each of its batches took is appended to `seconds`."""

    def stream(*args: Any, **settings: Any) -> Iterator[Any]:
        parts = cascade.stream(*args, **settings)
        begun = time.perf_counter()
        for part in parts:
            seconds.append(time.perf_counter() - begun)
            yield part
            begun = time.perf_counter()

    timed = copy.copy(cascade)
    timed.stream = stream
    return timed

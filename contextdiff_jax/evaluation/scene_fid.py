"""SceneFID: the Frechet distance of what is in the boxes (Sylvain et al. 2021, section 4).

Every box of a drawn picture's layout is cut out and resized to 224 pixels, so are the boxes of real
pictures, and the distance is between the two sets of crops.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from contextdiff_jax.data.boxes import Box, parse_line
from contextdiff_jax.data.example import SkipReport, Source
from contextdiff_jax.data.one_pass import one_pass
from contextdiff_jax.data.pipeline import probe
from contextdiff_jax.evaluation.evaluation import MOST_BY_DEFAULT, Evaluation
from contextdiff_jax.evaluation.feature_networks import (
    FeatureNetwork,
    clip_folder,
    load_networks,
)
from contextdiff_jax.evaluation.features import Read, extract_features
from contextdiff_jax.evaluation.frechet import frechet_distance
from contextdiff_jax.evaluation.results import Result, Table
from contextdiff_jax.evaluation.statistics import FeatureStatistics
from contextdiff_jax.generation.generate import Pictures

SIDE = 224  # of a crop
_RESAMPLING = Image.Resampling.BICUBIC


def crops(pictures: Sequence[np.ndarray], layouts: Iterable[Sequence[Box]]) -> np.ndarray:
    """Returns what is in the boxes of pictures (H, W, 3) uint8, (n, SIDE, SIDE, 3) uint8, in order.

    Corners are rounded to pixels, and a box has one pixel at least.
    """
    found = []
    for picture, boxes in zip(pictures, layouts, strict=True):
        for box in boxes:
            rows, columns = (
                _pixels(*box.corners[axis::2], length)
                for axis, length in ((1, picture.shape[0]), (0, picture.shape[1]))
            )
            crop = Image.fromarray(np.ascontiguousarray(picture[rows, columns]))
            found.append(np.asarray(crop.resize((SIDE, SIDE), _RESAMPLING)))
    return np.stack(found) if found else np.zeros((0, SIDE, SIDE, 3), np.uint8)


def _pixels(low: float, high: float, length: int) -> slice:
    start = min(round(low * length), length - 1)
    return slice(start, max(round(high * length), start + 1))


def plan_scene_fid(evaluation: Evaluation) -> Callable[[], Result]:
    """The Frechet distance of object crops, of pictures drawn of a data source's layouts."""
    settings, data = evaluation.settings, evaluation.data()
    if settings.captions or settings.reference:
        raise ValueError(
            "--what=scene_fid: its boxes are of --data, give no --captions, --reference"
        )
    if data.endless:
        data = dataclasses.replace(data, limit=settings.count or MOST_BY_DEFAULT)
    report = SkipReport()
    source = evaluation.open_data(data, report)
    probe(source)
    layouts = evaluation.captions(data, None)
    try:
        boxes = [parse_line(layout) for layout in layouts]
    except ValueError as error:
        raise ValueError(
            f"--what=scene_fid: the data's captions are no layouts: {error}"
        ) from error
    folder = clip_folder(evaluation.config, evaluation.locate, settings.clip)
    networks = load_networks(settings.features, settings.resize, folder, settings.batch_size)
    network = networks.frechet

    def work() -> Result:
        pictures = evaluation.draw(layouts, "scene_fid")
        drawn = _statistics(
            evaluation,
            network,
            "drawn",
            {"pictures": pictures.digest()},
            len(layouts),
            _of_drawn(pictures, evaluation.stage, boxes),
        )
        real = _statistics(
            evaluation,
            network,
            "real",
            {"data": dataclasses.asdict(data)},
            len(source),
            _of_source(source, data.reading_threads, report),
        )
        return _result(evaluation, network, drawn, real, source, len(layouts))

    return work


def _of_drawn(pictures: Pictures, stage: str, boxes: Sequence[Sequence[Box]]) -> Read:
    def read(places: range) -> np.ndarray:
        return crops(pictures.read(stage, places), [boxes[place] for place in places])

    return read


def _of_source(source: Source, threads: int, report: SkipReport) -> Read:
    def read(places: range) -> np.ndarray:
        batches = one_pass(source, places, len(places), report, threads)
        examples = [example for batch in batches for _, example in batch]
        return crops([each.image for each in examples], [each.boxes for each in examples])

    return read


def _statistics(
    evaluation: Evaluation,
    network: FeatureNetwork,
    name: str,
    of: dict[str, Any],
    count: int,
    read: Read,
) -> FeatureStatistics:
    """Returns the statistics of the crops of `count` pictures; features are kept, and go on."""
    files = extract_features(
        evaluation.output / "scene_fid_features" / name,
        {"features": network.identity.to_json(), "crops": SIDE, **of},
        count,
        read,
        network.extract,
        evaluation.watch,
    )
    found = FeatureStatistics(network.identity, network.dimension, f"crops of {name} pictures")
    for part in files.parts(network.layer):
        found.update(part)
    return found


def _result(
    evaluation: Evaluation,
    network: FeatureNetwork,
    drawn: FeatureStatistics,
    real: FeatureStatistics,
    source: Source,
    pictures: int,
) -> Result:
    distance, name = frechet_distance(drawn, real), network.distance_name
    warnings = [*evaluation.data_warnings(evaluation.data())]
    if distance.rank_deficient:
        warnings.append(f"Fewer crops than features: {distance.note}.")
    if name != "FID":
        warnings.append(f"It is {name} of crops: not comparable with SceneFID.")
    return Result(
        title="SceneFID",
        summary="Frechet distance between what is in the boxes of drawn pictures and of real ones.",
        values={"scene_fid": distance.distance, "crops": drawn.count, "real crops": real.count},
        protocol={
            "features": network.identity.to_json(),
            "crops": f"rounded to pixels, bicubic to {SIDE} px",
            "pictures": pictures,
            "real": source.name,
            **evaluation.protocol(),
        },
        tables=(
            Table(
                "scene_fid",
                ("measure", "value"),
                (
                    (f"{name}, crops", distance.distance),
                    ("crops", drawn.count),
                    ("real crops", real.count),
                ),
            ),
        ),
        warnings=tuple(warnings),
    )
